"""Questions are answered in batches: none waits when idle, none is lost, a bad one fails alone."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from retrieval_engine.serve.batcher import GATHER_S, Batcher
from retrieval_engine.serve.refusals import Overloaded, Stopping


class Doubling:
    """Doubles numbers, notes its batches, and stops at a gate; 13 is poison, 99 needs memory."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        assert self.gate.wait(300)
        self.batches.append(len(numbers))
        if 13 in numbers:
            raise ValueError("poison")
        if 99 in numbers and len(numbers) > 2:
            raise MemoryError
        return [2 * number for number in numbers]


def batcher(work: Doubling, most: int = 8, waiting: int = 64) -> Batcher[int, int]:
    return Batcher("doubler", work, max_batch=most, max_waiting=waiting)


async def behind_the_gate(
    made: Batcher[int, int], work: Doubling, numbers: Sequence[int]
) -> object:
    """Answers to questions that come while the thread is held up by another one."""
    work.gate.clear()
    first = asyncio.ensure_future(made.ask(0))
    await asyncio.sleep(0)
    while made.waiting:  # until the thread has it, and waits at the gate
        await asyncio.sleep(0.001)
    rest = [asyncio.ensure_future(made.ask(number)) for number in numbers]
    await asyncio.sleep(0.01)
    work.gate.set()
    return await asyncio.gather(first, *rest, return_exceptions=True)


def test_what_comes_while_it_is_busy_is_answered_together() -> None:
    work = Doubling()
    made = batcher(work)
    answers = asyncio.run(behind_the_gate(made, work, range(20, 40)))
    assert answers == [0, *(2 * number for number in range(20, 40))]
    assert work.batches == [1, 8, 8, 4]
    made.close()


def test_a_poisonous_question_fails_alone() -> None:
    work = Doubling()
    made = batcher(work)
    answers = asyncio.run(behind_the_gate(made, work, [1, 2, 13, 4, 5]))
    assert isinstance(answers, list)
    assert [a for a in answers if not isinstance(a, ValueError)] == [0, 2, 4, 8, 10]
    assert isinstance(answers[3], ValueError)
    made.close()


def test_what_is_too_much_for_the_memory_is_done_in_halves() -> None:
    work = Doubling()
    made = batcher(work)
    answers = asyncio.run(behind_the_gate(made, work, [99, 1, 2, 3, 4, 5, 6, 7]))
    assert answers == [0, 198, 2, 4, 6, 8, 10, 12, 14]
    assert work.batches == [1, 8, 4, 2, 2, 4]
    made.close()


def test_beyond_its_queue_it_refuses_and_says_when_to_come_again() -> None:
    work = Doubling()
    made = batcher(work, waiting=4)
    answers = asyncio.run(behind_the_gate(made, work, range(1, 8)))
    assert isinstance(answers, list)
    assert answers[:5] == [0, 2, 4, 6, 8]
    refused = answers[5:]
    assert all(isinstance(each, Overloaded) for each in refused)
    assert {each.headers["Retry-After"] for each in refused} == {"1"}
    made.close()


def test_an_urgent_question_goes_first_and_is_never_refused() -> None:
    work = Doubling()
    order: list[object] = []

    async def ask() -> None:
        work.gate.clear()
        asked = [asyncio.ensure_future(made.ask(number)) for number in (1, 2)]
        await asyncio.sleep(0)
        while made.waiting > 1:  # until the thread has the first
            await asyncio.sleep(0.001)
        asked.append(asyncio.ensure_future(made.ask(3)))
        urgent = asyncio.ensure_future(made.ask_all([4], is_urgent=True))
        for each in (*asked, urgent):
            each.add_done_callback(lambda done: order.append(done.result()))
        await asyncio.sleep(0.01)
        work.gate.set()
        await asyncio.gather(*asked, urgent)

    made = batcher(work, most=1, waiting=2)
    asyncio.run(ask())
    assert order.index([8]) < order.index(4)
    made.close()


def test_a_question_that_was_given_up_is_not_worked_on() -> None:
    work = Doubling()

    async def ask() -> None:
        work.gate.clear()
        first = asyncio.ensure_future(made.ask(1))
        await asyncio.sleep(0.01)
        gone = asyncio.ensure_future(made.ask(2))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        work.gate.set()
        assert await first == 2
        assert await made.ask(3) == 6

    made = batcher(work)
    asyncio.run(ask())
    assert sum(work.batches) == 2
    made.close()


def test_closing_answers_what_waits_and_takes_on_no_more() -> None:
    work = Doubling()
    made = batcher(work)

    async def ask() -> None:
        work.gate.clear()
        asked = [asyncio.ensure_future(made.ask(number)) for number in range(5)]
        await asyncio.sleep(0.01)
        work.gate.set()
        await asyncio.to_thread(made.close)
        assert await asyncio.gather(*asked) == [0, 2, 4, 6, 8]
        with pytest.raises(Stopping):
            await made.ask(1)

    asyncio.run(ask())


def test_an_idle_one_does_not_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval_engine.serve.batcher.GATHER_S", 3600.0)
    work = Doubling()
    made = batcher(work)

    async def ask() -> None:
        for number in range(20, 50):
            assert await asyncio.wait_for(made.ask(number), 300) == 2 * number

    asyncio.run(ask())
    assert set(work.batches) == {1}
    assert GATHER_S <= 0.005
    made.close()
