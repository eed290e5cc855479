"""No workers at all: each input when its result is asked for. For debugging and tests."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

from retrieval_engine.workers import Failed, Input, Output, Pool, attempt


def open_pool(workers: int, ahead: int) -> AbstractContextManager[Pool]:
    """See `workers.open_pool`; the numbers are ignored."""
    return nullcontext(SerialPool())


class SerialPool:
    """Runs tasks in the caller's own thread."""

    def imap(
        self, task: Callable[[Input], Output], inputs: Iterable[Input]
    ) -> Iterator[tuple[Input, Output | Failed]]:
        """See `Pool.imap`."""
        return ((value, attempt(task, value)) for value in inputs)
