"""A worker process ends with its parent, however the parent ended."""

import multiprocessing
import os
import signal
import threading


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
