"""Commands in forked children: killed, starved of disk, or left to end.

A forked child is a process as real as one that begins from nothing, and has imported torch already.
"""

import contextlib
import multiprocessing.forkserver
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retrieval_engine.cli import main

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Attributes:
        code: exit code, or minus the signal.
        output: what it wrote, stdout and stderr together.
        seconds: how long it ran.
    """

    code: int
    output: str
    seconds: float

    def check_told(self) -> None:
        """A failure must be explained: an error line, no traceback, no death by signal."""
        assert self.code >= 0, f"killed by signal {-self.code}: {self.output[-300:]}"
        assert "Traceback" not in self.output, self.output[-600:]
        assert "unforeseen" not in self.output, self.output[-600:]
        if self.code in (1, 2):
            # faiss itself says that it cannot close a file, and ends no line.
            output = re.sub(r"^file \S+ close error: .*?(?=Error: |$)", "", self.output, flags=re.M)
            errors = re.findall("^Error: ", output, re.MULTILINE)
            assert len(errors) == 1, self.output[-600:]


def vlre(*arguments: object) -> Callable[[], None]:
    """A command as typed, to be run in a child."""
    return lambda: main(args=[str(argument) for argument in arguments])


def held_at(name: str, work: Callable[[], object]) -> Callable[[], None]:
    """The same work, that cannot end before it is killed: it waits for ever where it opens a file.

    Args:
        name: a part of the file's path.
        work: what to run, with Python's own `open`.
    """

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and name in str(arguments[0]):
            threading.Event().wait()

    def held() -> None:
        sys.addaudithook(hook)
        work()

    return held


def in_child(
    work: Callable[[], object],
    *,
    kill_after: float | None = None,
    kill_when: Callable[[], object] | None = None,
    file_bytes: int | None = None,
) -> Ended:
    """Run something in a forked child.

    Args:
        work: what to run.
        kill_after: seconds until signal 9.
        kill_when: signal 9 as soon as it says so.
        file_bytes: no file may grow beyond this; the kernel refuses as a full disk does.
    """
    child = begin(work, file_bytes)
    return child.wait(TIMEOUT_S if kill_after is None else kill_after, kill_when)


def in_children(*works: Callable[[], object]) -> list[Ended]:
    """Run each in a forked child of its own, all at the same time."""
    children = [begin(work) for work in works]
    return [child.wait() for child in children]


@dataclass(frozen=True, slots=True)
class Child:
    """One that runs: its number, the pipe with its words, and when it began."""

    process: int
    reading: int
    begin: float

    def wait(
        self, within_s: float = TIMEOUT_S, kill_when: Callable[[], object] | None = None
    ) -> Ended:
        """How it ends; killed when it is told to, or is too long about it."""
        output = b""
        while True:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            output += _read(self.reading)
            if ended:
                break
            if time.monotonic() > self.begin + within_s or (kill_when and kill_when()):
                os.killpg(self.process, signal.SIGKILL)
                status = os.waitpid(self.process, 0)[1]
                break
            time.sleep(0.002)
        output += _read(self.reading)
        os.close(self.reading)
        seconds = time.monotonic() - self.begin
        return Ended(os.waitstatus_to_exitcode(status), output.decode(errors="replace"), seconds)


def begin(work: Callable[[], object], file_bytes: int | None = None) -> Child:
    """Run something in a forked child, which leads a group of its own."""
    # A pipe, not a file: a child with a full disk must still be able to say so.
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    now = time.monotonic()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        _be_child(work, writing, file_bytes)
    with contextlib.suppress(OSError):  # whichever is first: a kill may follow at once
        os.setpgid(child, child)
    os.close(writing)
    return Child(child, reading, now)


def _be_child(work: Callable[[], object], out: int, file_bytes: int | None) -> None:
    code = 99
    try:
        _share_forkserver()
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        if file_bytes is not None:
            limit_files(file_bytes)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - told by its traceback, which no trial lets pass
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def limit_files(file_bytes: int) -> None:
    """Let no file of this process and its children grow longer: as on a full disk.

    Python would write compiled modules cut short, and keep them for everybody.
    """
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def _share_forkserver() -> None:
    """`multiprocessing` would wait for the parent's as for a child of its own; it serves us too."""
    server: Any = multiprocessing.forkserver._forkserver
    if server._forkserver_pid is not None:
        server.ensure_running = lambda: None


def _read(reading: int) -> bytes:
    found = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(reading, 1 << 16):
            found += piece
    return found
