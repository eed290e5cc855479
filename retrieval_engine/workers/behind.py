"""Calls done in order on a thread of their own, so that writing overlaps with computing."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Behind:
    """Runs calls in order on one thread behind the caller, a bounded number of them waiting.

    A call that raised raises in the caller, at a later call or at `wait`.

    Args:
        most: how many calls may wait before the caller does.

    Attributes:
        seconds: that the calls took so far.
    """

    def __init__(self, most: int = 2) -> None:
        self.seconds = 0.0
        self._most = most
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="vlre-behind")
        self._waiting: deque[Future[object]] = deque()

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def do(self, call: Callable[..., object], *arguments: object) -> None:
        """Queue a call; waits while too many are queued."""
        while len(self._waiting) > self._most:
            self._waiting.popleft().result()
        self._waiting.append(self._executor.submit(self._timed, call, arguments))

    def _timed(self, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        start = time.perf_counter()
        try:
            call(*arguments)
        finally:
            self.seconds += time.perf_counter() - start

    def wait(self) -> None:
        """Wait until every queued call is done."""
        while self._waiting:
            self._waiting.popleft().result()
