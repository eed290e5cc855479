"""Ordered, bounded maps over threads or processes; they know nothing of embeddings.

A kind is one file in `kinds/` with `open_pool(workers: int, ahead: int) -> Pool`. `supervised` has a
process that keeps something open from call to call, and is begun anew when it is lost.
"""

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from retrieval_engine.machine import usable_cores
from retrieval_engine.plugins import Plugins

KINDS = Plugins(package="retrieval_engine.workers.kinds", noun="kind of worker")
AHEAD_PER_WORKER = 16

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A task that raised, or whose worker died.

    Attributes:
        error: the exception, or None when the worker process died.
        reason: one line for people.
        details: the traceback as text.
    """

    error: Exception | None
    reason: str
    details: str = ""


class Pool(Protocol):
    """Workers that apply one task to many inputs."""

    def imap(
        self, task: Callable[[Input], Output], inputs: Iterable[Input]
    ) -> Iterator[tuple[Input, Output | Failed]]:
        """Results in the order of the inputs, computed a bounded number ahead of the reader.

        A task that raises gives a `Failed` in its place and disturbs no other.

        Args:
            task: picklable where workers are processes.
            inputs: read lazily, a bounded number ahead.
        """


def open_pool(kind: str, workers: int = 0, *, ahead: int = 0) -> AbstractContextManager[Pool]:
    """A pool of workers; leaving the context ends them.

    Args:
        kind: file name in `kinds/`: `serial`, `threads` or `processes`.
        workers: how many; 0 means one for each core this process may use.
        ahead: how many inputs may be under way or done but not yet read, at the least.

    Raises:
        UsageError: there is no such kind.
    """
    count = workers or usable_cores()
    module = KINDS.load(kind)
    pool: AbstractContextManager[Pool] = module.open_pool(
        count, max(ahead, count * AHEAD_PER_WORKER)
    )
    return pool


def attempt(task: Callable[[Input], Output], value: Input) -> Output | Failed:
    """The result of a task, or the `Failed` that its exception becomes."""
    try:
        return task(value)
    except Exception as error:  # noqa: BLE001 - whatever Pillow, torch, … raise of one input
        reason = str(error) or type(error).__name__
        return Failed(error=error, reason=reason, details=traceback.format_exc())
