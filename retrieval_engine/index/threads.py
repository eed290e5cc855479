"""Threads beside the one that asks; libraries that search let go of the interpreter meanwhile."""

import os
from concurrent.futures import ThreadPoolExecutor

from retrieval_engine.machine import threads_wanted


class Threads:
    """A pool of as many threads as the process may use, begun when first asked for.

    A forked process has none of its parent's threads, and begins its own.
    """

    def __init__(self) -> None:
        self._begun: tuple[int, ThreadPoolExecutor] | None = None

    def __call__(self) -> ThreadPoolExecutor:
        """The pool."""
        if self._begun is None or self._begun[0] != os.getpid():
            self._begun = os.getpid(), ThreadPoolExecutor(threads_wanted(), "vlre-index")
        return self._begun[1]
