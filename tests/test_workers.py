"""Every kind of pool keeps the contract; what is one kind's own."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from retrieval_engine.errors import UsageError
from retrieval_engine.testing import PoolContract
from retrieval_engine.workers import AHEAD_PER_WORKER, Failed, Pool, open_pool
from retrieval_engine.workers.kinds import processes, serial, threads


def square(value: int) -> int:
    if value == 666:
        os._exit(9)
    return value * value


class TestSerial(PoolContract):
    def open(self, workers: int, ahead: int) -> AbstractContextManager[Pool]:
        return serial.open_pool(workers, ahead)


class TestThreads(PoolContract):
    def open(self, workers: int, ahead: int) -> AbstractContextManager[Pool]:
        return threads.open_pool(workers, ahead)


class TestProcesses(PoolContract):
    def open(self, workers: int, ahead: int) -> AbstractContextManager[Pool]:
        return processes.open_pool(workers, ahead)


@pytest.mark.parametrize("kind", ["serial", "threads"])
def test_inputs_are_read_a_bounded_number_ahead(kind: str) -> None:
    read = 0

    def count() -> Iterator[int]:
        nonlocal read
        for value in range(1_000):
            read += 1
            yield value

    with open_pool(kind, 2) as pool:
        results = pool.imap(square, count())
        for _ in range(3):
            next(results)
        assert read <= 3 + 2 * AHEAD_PER_WORKER


def test_a_dead_worker_fails_only_its_own_input() -> None:
    values = [1, 2, 666, 3, 4, 666, 5]
    with open_pool("processes", 2) as pool:
        found = [result for _, result in pool.imap(square, values)]
    assert [r for r in found if not isinstance(r, Failed)] == [1, 4, 9, 16, 25]
    assert isinstance(found[2], Failed)
    assert "died" in found[2].reason


def test_threads_end_with_the_context() -> None:
    with open_pool("threads", 2) as pool:
        results = pool.imap(square, range(10_000))
        next(results)
    assert not [t for t in threading.enumerate() if t.name.startswith("vlre-worker")]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="processes, serial, threads"):
        open_pool("fibres")
