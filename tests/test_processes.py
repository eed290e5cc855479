"""Commands end when they are told to, and nobody they started outlives them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from retrieval_engine.store import open_store
from tests import tiny
from tests.children import begin, vlre

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def _descendants(process: int) -> set[int]:
    """Process ids of all children and children's children that run."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1])
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(what: str, condition: Callable[[], object], timeout_s: float = 300) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"no {what} within {timeout_s} s"
        time.sleep(0.05)


def _started(*arguments: str, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=out,
            stderr=out,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=_default_signals,
        )


def _default_signals() -> None:
    """As a shell in front of a person has them, whoever runs the tests (`nohup` ignores SIGHUP)."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("to_all", [False, True], ids=["to the parent", "to the whole group"])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"])
def test_no_worker_outlives_its_parent(tmp_path: Path, name: str, to_all: bool) -> None:
    log = tmp_path / "log"
    run = _started("-m", "tests.endless_work", log=log)
    _wait("work", lambda: "working" in log.read_text() or run.poll() is not None)
    assert run.poll() is None, log.read_text()
    workers = _descendants(run.pid)
    assert len(workers) >= 2
    number = signal.Signals[name]
    (os.killpg if to_all else os.kill)(run.pid, number)
    code = run.wait(300)
    _wait("end of the workers", lambda: not any(map(_is_running, workers)))
    if name == "SIGKILL":
        assert code == -signal.SIGKILL
        return
    assert code == 128 + number
    told = "interrupted" if name == "SIGINT" else f"ended by {name}"
    assert log.read_text().splitlines()[-1] == told
    assert "Traceback" not in log.read_text()


def test_an_encode_that_is_told_to_end_cleans_up(tmp_path: Path) -> None:
    store, workers = tmp_path / "s", set[int]()
    model = tiny.save_blip(tmp_path / "blip")
    options = ("--model", model, "--shard-rows", 16, "--worker-kind", "processes")
    command = vlre("encode", "scenes:20000", "--store", store, *options)

    def as_from_a_shell() -> None:
        _default_signals()
        command()

    run = begin(as_from_a_shell)

    def tell_when_something_is_committed() -> None:
        if not workers and list(store.glob("shards/*.parquet")):
            workers.update(_descendants(run.process))
            os.kill(run.process, signal.SIGTERM)

    ended = run.wait(kill_when=tell_when_something_is_committed)
    assert workers, ended.output
    assert ended.code == 128 + signal.SIGTERM, ended.output
    _wait("end of the workers", lambda: not any(map(_is_running, workers)))
    assert ended.output.splitlines()[-1] == "ended by SIGTERM"
    assert "Traceback" not in ended.output
    assert open_store(store).verify() == []
    assert not list(store.glob("**/*.partial"))


def test_an_ignored_hangup_stays_ignored() -> None:
    code = (
        "import os, signal\n"
        "from retrieval_engine.cli.signals import ending_cleanly\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"  # as nohup does
        "with ending_cleanly():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print('still here')\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "still here\n"
