"""Threads: right for decoding, where Pillow lets go of the interpreter lock."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

from retrieval_engine.workers import Failed, Input, Output, Pool, attempt


@contextmanager
def open_pool(workers: int, ahead: int) -> Iterator[Pool]:
    """See `workers.open_pool`."""
    with ThreadPoolExecutor(workers, thread_name_prefix="vlre-worker") as executor:
        try:
            yield ThreadPool(executor, ahead=ahead)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


class ThreadPool:
    """Runs tasks in threads of this process.

    Args:
        executor: the threads.
        ahead: how many inputs may be under way or done but not yet read.
    """

    def __init__(self, executor: ThreadPoolExecutor, *, ahead: int) -> None:
        self._executor = executor
        self._ahead = ahead

    def imap(
        self, task: Callable[[Input], Output], inputs: Iterable[Input]
    ) -> Iterator[tuple[Input, Output | Failed]]:
        """See `Pool.imap`."""
        remaining = iter(inputs)
        under_way: deque[tuple[Input, Future[Output | Failed]]] = deque()

        def submit(values: Iterable[Input]) -> None:
            for value in values:
                under_way.append((value, self._executor.submit(attempt, task, value)))

        submit(islice(remaining, self._ahead))
        while under_way:
            value, future = under_way.popleft()
            result = future.result()
            submit(islice(remaining, 1))
            yield value, result
