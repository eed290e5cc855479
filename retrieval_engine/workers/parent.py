"""A worker process ends with its parent, however the parent ended, and not before it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def end_with_parent() -> None:
    """Called in a worker: leave Ctrl-C to the parent, and die when the parent is gone.

    A parent that was killed with SIGKILL cannot tell its workers. They hold both ends of the pipe
    they wait at, so that it never closes: they would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_and_die, name="vlre-parent-watch", daemon=True).start()


def _wait_and_die() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def signals_kept() -> Iterator[None]:
    """What is started within it never sees Ctrl-C or a lost terminal: the parent alone is told.

    It inherits the mask of the thread that starts it, so that this holds also before it has begun,
    and for the resource tracker, which complains when it is ended early. Windows has no mask.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
