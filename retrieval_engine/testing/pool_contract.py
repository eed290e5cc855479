"""What every kind of worker must do: order, a bounded distance ahead, failures in their place."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager

from retrieval_engine.workers import Failed, Pool

AHEAD = 8


def square(value: int) -> int:
    """The task; 13 is not allowed."""
    if value == 13:
        raise ValueError("thirteen is not allowed")
    return value * value


def square_slowly_at_first(value: int) -> int:
    """The same, but the first inputs are done last where there are several workers."""
    time.sleep(0.03 if value % 4 == 0 else 0)
    return value * value


class PoolContract(ABC):
    """Subclass it with `open`."""

    @abstractmethod
    def open(self, workers: int, ahead: int) -> AbstractContextManager[Pool]:
        """A pool of this many workers that runs at most so many inputs ahead."""

    def test_results_keep_their_order_and_failures_their_place(self) -> None:
        with self.open(2, AHEAD) as pool:
            found = list(pool.imap(square, range(60)))
        assert [value for value, _ in found] == list(range(60))
        assert all(result == value**2 for value, result in found if value != 13)
        failed = found[13][1]
        assert isinstance(failed, Failed)
        assert failed.reason == "thirteen is not allowed"
        assert "in square" in failed.details

    def test_who_is_done_first_does_not_come_first(self) -> None:
        with self.open(2, AHEAD) as pool:
            found = list(pool.imap(square_slowly_at_first, range(12)))
        assert found == [(value, value * value) for value in range(12)]

    def test_inputs_are_read_a_bounded_number_ahead(self) -> None:
        read = 0

        def count() -> Iterator[int]:
            nonlocal read
            for value in range(1_000):
                read += 1
                yield value

        with self.open(2, AHEAD) as pool:
            results = pool.imap(square, count())
            for _ in range(3):
                next(results)
            assert 3 <= read <= 3 + AHEAD

    def test_no_inputs_give_no_results(self) -> None:
        with self.open(2, AHEAD) as pool:
            assert list(pool.imap(square, [])) == []

    def test_it_serves_one_call_after_another(self) -> None:
        with self.open(2, AHEAD) as pool:
            assert list(pool.imap(square, [2])) == [(2, 4)]
            assert list(pool.imap(square, [3, 4])) == [(3, 9), (4, 16)]

    def test_leaving_it_half_read_ends_its_threads(self) -> None:
        before = threading.active_count()
        with self.open(2, AHEAD) as pool:
            results = pool.imap(square, range(10_000))
            next(results)
            results.close()  # type: ignore[attr-defined]
        assert threading.active_count() <= before
