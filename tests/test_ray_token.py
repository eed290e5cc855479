"""`--on` a cluster as people start one, by Ray's own command, that asks for a token; both addresses."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from retrieval_engine.encoding import encode
from tests.test_device_pool import shards
from tests.test_processes import _wait

pytestmark = [pytest.mark.service, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@contextmanager
def started(home: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """A cluster as people start one, which asks for a token; its two addresses, and surroundings."""
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in bound]
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    surroundings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "HOME": str(home),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or it would not listen on the loopback
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    line = f"start --head --block --node-ip-address 127.0.0.1 --port {ports[0]} --num-cpus 2"
    line += f" --ray-client-server-port {ports[1]} --include-dashboard false"
    line += f" --runtime-env-agent-port {ports[2]} --min-worker-port 0 --max-worker-port 0"
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as place:
        command = [str(Path(sys.executable).parent / "ray"), *line.split(), "--temp-dir", place]
        with subprocess.Popen(
            command, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as head:
            try:
                _wait("head", lambda: all(map(_listens, ports)), 60)
                yield f"127.0.0.1:{ports[0]}", f"ray://127.0.0.1:{ports[1]}", surroundings
            finally:
                theirs = psutil.Process(head.pid).children(recursive=True)
                head.terminate()
                for process in psutil.wait_procs(theirs, timeout=20)[1]:
                    process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_a_cluster_that_asks_for_a_token(tmp_path: Path) -> None:
    encode("scenes:6?seed=1", tmp_path / "here", encoder="vlre-tiny")
    line = "encode scenes:6?seed=1 --model vlre-tiny --devices cpu:1"
    command = [sys.executable, "-c", "from retrieval_engine.cli import main; main()", *line.split()]

    def encoded(on: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        more = ["--on", on, "--store", str(tmp_path / on[:3])]
        return subprocess.run(
            [*command, *more], env=env, capture_output=True, text=True, timeout=180, check=False
        )

    with started(tmp_path) as (direct, client, env):
        for address in (direct, client):
            stranger = encoded(address, env)
            assert stranger.returncode == 1
            error, hint = stranger.stderr.splitlines()[-2:]
            assert error == f"Error: the Ray cluster at {address} asks for a token"
            assert hint.startswith("hint: set RAY_AUTH_MODE=token")
            ended = encoded(address, {**env, "RAY_AUTH_MODE": "token"})
            assert ended.returncode == 0, ended.stderr
            assert shards(tmp_path / address[:3]) == shards(tmp_path / "here")
            shutil.rmtree(tmp_path / address[:3])
        wrong = encoded(direct.replace("127", "ray://127"), env)
        assert wrong.returncode == 1
        assert "is no Ray cluster" in wrong.stderr
