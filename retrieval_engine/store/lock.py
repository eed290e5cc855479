"""One writer per store. A lock of a dead process is no obstacle: the kernel drops it."""

import errno
import fcntl
import os
import socket
import weakref
from pathlib import Path

from retrieval_engine.errors import StoreError
from retrieval_engine.store.manifest import LOCK

_held: "weakref.WeakSet[WriterLock]" = weakref.WeakSet()
_hook_installed = False


class WriterLock:
    """Holds a store for writing until released.

    Args:
        path: directory of the store.

    Raises:
        StoreError: another writer holds it (the message says which), or locks do not work there.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
            self.forget()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise StoreError(f"cannot lock {path}: {error.strerror}") from error
            raise StoreError(
                f"{path} is being written by {owner or 'another process'}",
                hint="wait for it to end, or write to another `store`",
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(
            self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0
        )
        _held.add(self)
        _install_fork_hook()

    def release(self) -> None:
        """Let others write."""
        if self._descriptor >= 0:
            # Closing alone would not do while a forked child has yet to close its copy.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.forget()

    def forget(self) -> None:
        """Close the descriptor without unlocking: what a forked child does with its copy."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _install_fork_hook() -> None:
    # A forked worker would keep the lock of a killed parent alive, so children let go of it.
    global _hook_installed
    if not _hook_installed:
        os.register_at_fork(after_in_child=_forget_in_child)
        _hook_installed = True


def _forget_in_child() -> None:
    for lock in list(_held):
        lock.forget()
