"""Commands in forked children: killed, starved of disk, or left to end."""

import contextlib
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from retrieval_engine.cli import main

TIMEOUT_S = 240.0


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


def in_child(
    work: Callable[[], object], *, kill_after: float | None = None, file_bytes: int | None = None
) -> Ended:
    """Run something in a forked child.

    Args:
        work: what to run.
        kill_after: seconds until signal 9.
        file_bytes: no file may grow beyond this; the kernel refuses as a full disk does.
    """
    # A pipe, not a file: a child with a full disk must still be able to say so.
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    begin = time.monotonic()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        _be_child(work, writing, file_bytes)
    with contextlib.suppress(OSError):  # whichever is first: a kill may follow at once
        os.setpgid(child, child)
    os.close(writing)
    code, output = _wait(child, reading, begin + (TIMEOUT_S if kill_after is None else kill_after))
    os.close(reading)
    return Ended(code, output.decode(errors="replace"), time.monotonic() - begin)


def _be_child(work: Callable[[], object], out: int, file_bytes: int | None) -> None:
    code = 99
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
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


def _wait(child: int, reading: int, deadline: float) -> tuple[int, bytes]:
    output = b""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        output += _read(reading)
        if ended:
            return os.waitstatus_to_exitcode(status), output + _read(reading)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            return os.waitstatus_to_exitcode(status), output + _read(reading)
        time.sleep(0.002)


def _read(reading: int) -> bytes:
    found = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(reading, 1 << 16):
            found += piece
    return found
