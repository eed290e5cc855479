"""Processes: right for work that holds the interpreter lock, such as drawing.

A worker that dies (killed for memory, a crash in a C library) takes down only the input it was at:
the pool starts again and tries what was under way one by one.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any
from weakref import WeakSet

from retrieval_engine.workers import Failed, Input, Output, Pool, attempt
from retrieval_engine.workers.parent import end_with_parent, signals_kept

_task: Callable[[Any], Any]


@contextmanager
def open_pool(workers: int, ahead: int) -> Iterator[Pool]:
    """See `workers.open_pool`."""
    pool = ProcessPool(workers, ahead=ahead)
    try:
        yield pool
    finally:
        pool.close()


def _receive(task: Callable[[Any], Any]) -> None:
    """Keep the task in the worker, so that it travels once and not with each input."""
    global _task
    end_with_parent()
    _task = task


def _run(value: Any) -> Any:
    result = attempt(_task, value)
    if isinstance(result, Failed):
        # An exception of a third library may not survive the journey; its text does.
        return Failed(error=None, reason=result.reason, details=result.details)
    return result


def _submit(executor: ProcessPoolExecutor, value: Any) -> Future[Any]:
    with signals_kept():  # a submission may start a worker
        return executor.submit(_run, value)


class ProcessPool:
    """Runs tasks in fresh processes, which import only what the task needs.

    Args:
        workers: how many processes.
        ahead: how many inputs may be under way or done but not yet read.
    """

    def __init__(self, workers: int, *, ahead: int) -> None:
        self._workers = workers
        self._ahead = ahead
        self._executors: WeakSet[ProcessPoolExecutor] = WeakSet()

    def close(self) -> None:
        """End all processes, also those of an `imap` that was not read to its end.

        Left to the garbage collector that might happen on the executor's own thread, which would
        then wait for itself.
        """
        for executor in list(self._executors):
            executor.shutdown(cancel_futures=True)

    def _start(self, task: Callable[[Any], Any], workers: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        with signals_kept():
            executor = ProcessPoolExecutor(
                workers, mp_context=context, initializer=_receive, initargs=(task,)
            )
        self._executors.add(executor)
        return executor

    def imap(
        self, task: Callable[[Input], Output], inputs: Iterable[Input]
    ) -> Iterator[tuple[Input, Output | Failed]]:
        """See `Pool.imap`."""
        remaining = iter(inputs)
        under_way: deque[tuple[Input, Future[Output | Failed]]] = deque()
        executor = self._start(task, self._workers)
        try:
            while True:
                wanted = self._ahead - len(under_way)
                for value in islice(remaining, wanted):
                    under_way.append((value, _submit(executor, value)))
                if not under_way:
                    return
                value, future = under_way[0]
                try:
                    result = future.result()
                except BrokenProcessPool:
                    values = [value for value, _ in under_way]
                    under_way.clear()
                    executor.shutdown(cancel_futures=True)
                    yield from self._one_by_one(task, values)
                    executor = self._start(task, self._workers)
                    continue
                under_way.popleft()
                yield value, result
        finally:
            executor.shutdown(cancel_futures=True)

    def _one_by_one(
        self, task: Callable[[Input], Output], values: list[Input]
    ) -> Iterator[tuple[Input, Output | Failed]]:
        """Each value alone, so that the one that kills its worker is told from its neighbours."""
        executor = self._start(task, 1)
        try:
            for value in values:
                result: Output | Failed
                try:
                    result = _submit(executor, value).result()
                except BrokenProcessPool:
                    result = Failed(error=None, reason="its worker process died (out of memory?)")
                    executor.shutdown()
                    executor = self._start(task, 1)
                yield value, result
        finally:
            executor.shutdown(cancel_futures=True)
