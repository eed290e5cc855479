"""Ordered, bounded maps over threads or processes; they know nothing of embeddings.

A kind is one file in `kinds/` with `open_pool(workers: int, ahead: int) -> Pool`. A `Keeper` keeps
something open from call to call, and is begun anew when it is lost: `supervised` has a process of
this machine, `ray_cluster` an actor on a node of a cluster.
"""

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from retrieval_engine.errors import VlreError
from retrieval_engine.machine import usable_cores
from retrieval_engine.plugins import Plugins

KINDS = Plugins(package="retrieval_engine.workers.kinds", noun="kind of worker")
AHEAD_PER_WORKER = 16

Input = TypeVar("Input")
Output = TypeVar("Output")
Word = TypeVar("Word")
_Word = TypeVar("_Word", covariant=True)
_Input = TypeVar("_Input", contravariant=True)
_Output = TypeVar("_Output", covariant=True)


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


class Keeper(Protocol[_Word, _Input, _Output]):
    """A process, wherever it is, that answers one call after another for one thread.

    What it needs it opens before its first call. A call whose process dies, raises or does not
    answer in time gives a `Failed`, and costs nobody but that process.
    """

    @property
    def pid(self) -> int | None:
        """Of the process, or None when there is none."""

    @property
    def where(self) -> str:
        """The node that it is on; empty for this machine."""

    @property
    def is_ready(self) -> bool:
        """Whether it is worth asking: it began long enough ago, or begins at once."""

    def start(self) -> None:
        """Begin a process where there is none; it opens what it needs while the caller goes on."""

    def opened(self, within_s: float | None = None) -> _Word | Failed:
        """What a process that has just been started says when it is ready; once for each."""

    def call(self, value: _Input, within_s: float) -> _Output | Failed:
        """The answer to one call. After a `Failed` there is no process until the next `start`."""

    def retire(self) -> None:
        """Kill the process, and begin no other; a call that waits for it is told so. For any thread."""

    def end(self) -> None:
        """End the process and wait for it."""


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


def portable(failed: Failed) -> Failed:
    """An exception of a third library may not survive the journey; its text does."""
    return failed if isinstance(failed.error, VlreError) else replace(failed, error=None)


def attempt(task: Callable[[Input], Output], value: Input) -> Output | Failed:
    """The result of a task, or the `Failed` that its exception becomes."""
    try:
        return task(value)
    except Exception as error:  # noqa: BLE001 - whatever Pillow, torch, … raise of one input
        reason = str(error) or type(error).__name__
        return Failed(error=error, reason=reason, details=traceback.format_exc())
