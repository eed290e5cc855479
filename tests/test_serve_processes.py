"""Several processes behind one port: all answer, one that is killed is replaced, none is left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from tests.serving import PATIENCE_S, make_store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills by signals")


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_there(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def seen(address: str, before: set[int]) -> set[int]:
    """The processes that have answered, with those that answer a few connections more."""
    for _ in range(4):
        line = HTTPConnection(urlsplit(address).netloc, timeout=PATIENCE_S)  # httpx begins slowly
        with contextlib.suppress(OSError, HTTPException), contextlib.closing(line):
            line.request("GET", "/readyz")
            before.add(int(line.getresponse().headers["x-process"]))
    return before


@pytest.mark.whole
def test_all_answer_and_one_that_is_killed_is_replaced(tmp_path: Path) -> None:
    store = make_store(tmp_path, 4)
    code = "from retrieval_engine.cli import main; main()"
    words = ["serve", "--store", str(store), "--devices", "cpu:2", "--port", "0"]
    words += ["--cache", str(tmp_path / "cache")]
    log = tmp_path / "log"
    with log.open("wb") as file:  # a pipe that nobody reads would fill, and hold all up
        server = subprocess.Popen([sys.executable, "-c", code, *words], stderr=file)
    all_seen: set[int] = set()
    try:
        until(lambda: "listening on" in log.read_text())
        address = log.read_text().partition("listening on ")[2].partition(",")[0]
        until(lambda: len(seen(address, all_seen)) == 2)
        one = min(all_seen)
        search = {"text": "a dog on grass", "k": 4}
        os.kill(one, signal.SIGKILL)
        until(lambda: not is_there(one))
        assert len(_hits(address, search)) == 4
        until(lambda: len(seen(address, all_seen)) == 3)
        figures = httpx.get(f"{address}/metrics", timeout=60).text
        counted = [row for row in figures.splitlines() if 'route="/api/search",status="200"' in row]
        assert [row.split()[-1] for row in counted] == ["1.0"]  # whichever is asked
        assert 'vlre_waiting_encoder{process="' in figures
    finally:
        server.kill()
        server.wait()
    until(lambda: not any(is_there(process) for process in all_seen))


def test_devices_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for words, said in [
        (["--devices", "gpu"], "Error: --devices names 'gpu'; known: all, cuda:0"),
        (["--devices", "cpu:2", "--device", "cpu"], "Error: --devices goes neither with --device"),
    ]:
        found = CliRunner().invoke(main, ["serve", "--store", str(tmp_path), *words])
        assert found.exit_code == 2
        assert found.stderr.startswith(said), found.stderr


def _hits(address: str, search: dict[str, object]) -> list[object]:
    found: list[object] = []

    def asked() -> bool:
        with contextlib.suppress(httpx.TransportError):  # of the one that was just killed
            answer = httpx.post(f"{address}/api/search", json=search, timeout=PATIENCE_S)
            assert answer.status_code == 200, answer.text
            found.extend(answer.json()["hits"])
        return bool(found)

    until(asked)
    return found
