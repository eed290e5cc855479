"""One writer at a time, on every system; a lock of a dead process is no obstacle."""

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


class Taken(Exception):
    """Another process holds the lock.

    Attributes:
        owner: what it wrote about itself, or `another process`.
    """

    def __init__(self, owner: str) -> None:
        super().__init__(f"held by {owner}")
        self.owner = owner


class FileLock:
    """Held from its making until `release`, or until the process is gone.

    The kernel keeps it, so that nothing has to be cleared away after a kill; a forked child has no
    part in it. The file names its last owner.

    Args:
        path: of the lock's file, made when absent.

    Raises:
        Taken: another holds it.
        OSError: the file cannot be made, or files cannot be locked there.
    """

    def __init__(self, path: Path) -> None:
        # Imported here: it takes a twentieth of a second, and readers take no lock.
        from filelock import FileLock as AnyFileLock
        from filelock import Timeout

        self._lock: BaseFileLock = AnyFileLock(
            path, timeout=0, mode=0o644, thread_local=False, fallback_to_soft=False
        )
        try:
            self._lock.acquire()
        except Timeout:
            path.open("ab").close()  # a file that cannot be made says so; filelock waits for it
            raise Taken(_owner(path)) from None
        if os.name != "nt":  # there nobody could read it while it is locked
            with contextlib.suppress(OSError):  # a full disk is told where it matters
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")

    def release(self, *, remove: bool = False) -> None:
        """Let others have it; nothing happens the second time.

        Args:
            remove: take the file away too; who waits for it makes it anew.
        """
        if remove and self._lock.is_locked:
            with contextlib.suppress(OSError):  # Windows keeps open files
                Path(self._lock.lock_file).unlink()
        self._lock.release()


def _owner(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(200).decode(errors="replace").strip() or "another process"
    except OSError:
        return "another process"
