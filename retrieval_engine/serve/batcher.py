"""Questions of many requests answered by a model together, in a thread of its own.

A question that comes while the model is idle is worked on at once, alone. What comes while it is
busy is worked on together next. After a batch of several, as under load, up to `GATHER_S` are
waited for as many again: their senders are just then being answered.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from retrieval_engine.serve.refusals import Overloaded, Stopping

Q = TypeVar("Q")
A = TypeVar("A")
GATHER_S = 0.004
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Asked(Generic[Q, A]):
    question: Q
    answer: "asyncio.Future[A]"


class Batcher(Generic[Q, A]):
    """Answers questions in batches.

    Args:
        name: of the thread, and in figures.
        work: answers several questions, in their order; it runs in one thread alone.
        max_batch: questions at once.
        max_waiting: beyond so many that wait, `Overloaded` is raised.
        observe: told the size of each batch, and its seconds.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Q]], Sequence[A]],
        *,
        max_batch: int,
        max_waiting: int,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.name = name
        self._work = work
        self._most, self._max_waiting = max_batch, max_waiting
        self._observe = observe
        self._asked: deque[_Asked[Q, A]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds_each = 0.01
        self._thread = threading.Thread(target=self._run, name=f"vlre-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of questions that wait."""
        return len(self._asked)

    @property
    def is_full(self) -> bool:
        """Whether one more question would be refused."""
        return len(self._asked) >= self._max_waiting

    async def ask(self, question: Q) -> A:
        """The answer to one question; see `ask_all`."""
        return (await self.ask_all([question]))[0]

    async def ask_all(self, questions: Sequence[Q], *, is_urgent: bool = False) -> list[A]:
        """The answers to questions of one request: all are taken on, or none.

        Args:
            questions: they may be worked on in different batches.
            is_urgent: go before all others, and beyond `max_waiting`.

        Raises:
            Overloaded: too many wait already.
            Stopping: the server ends.
            Exception: what `work` raised over one of these questions by itself.
        """
        loop = asyncio.get_running_loop()
        asked: list[_Asked[Q, A]] = [_Asked(q, loop.create_future()) for q in questions]
        with self._changed:
            if self._closed:
                raise Stopping
            if len(self._asked) + len(asked) > self._max_waiting and not is_urgent:
                raise Overloaded(self.name, len(self._asked) * self._seconds_each)
            if is_urgent:
                self._asked.extendleft(reversed(asked))
            else:
                self._asked.extend(asked)
            self._changed.notify()
        try:
            return list(await asyncio.gather(*(each.answer for each in asked)))
        finally:  # of a request that failed or was given up, nothing more is worked on
            for each in asked:
                if each.answer.done() and not each.answer.cancelled():
                    each.answer.exception()  # seen: it is told through another one
                each.answer.cancel()

    def close(self) -> None:
        """Answer what waits, take on no more, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        gathering = 0
        while batch := self._next(gathering):
            start = time.perf_counter()
            answers = self._answers([each.question for each in batch])
            seconds = time.perf_counter() - start
            self._seconds_each += 0.2 * (seconds / len(batch) - self._seconds_each)
            self._observe(len(batch), seconds)
            self._deliver(batch, answers)
            gathering = len(batch)

    def _next(self, gathering: int) -> list[_Asked[Q, A]]:
        """What is worked on next; nothing at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(partial(self._has, 1))
                if gathering > 1:
                    until = min(gathering, self._most)
                    self._changed.wait_for(partial(self._has, until), GATHER_S)
                batch: list[_Asked[Q, A]] = []
                while self._asked and len(batch) < self._most:
                    each = self._asked.popleft()
                    if not each.answer.cancelled():
                        batch.append(each)
                if batch or self._closed:
                    return batch

    def _has(self, number: int) -> bool:
        return len(self._asked) >= number or self._closed

    def _answers(self, questions: Sequence[Q]) -> list[A | BaseException]:
        """An answer or an error for each: a batch that fails is halved until one alone fails.

        So one poisonous question spoils no other, and what is too much for the memory at once is
        done in parts. Whatever torch, faiss, HDF5 or Pillow raise is caught: it is raised again
        before the one who asked, and a thread that ended would leave all others without an answer.
        """
        try:
            return list(self._work(questions))
        except Exception as error:  # noqa: BLE001 (raised again by `ask_all`)
            if len(questions) == 1:
                return [error]
            _log.warning("%d questions for the %s, halved: %r", len(questions), self.name, error)
        middle = len(questions) // 2
        return self._answers(questions[:middle]) + self._answers(questions[middle:])

    def _deliver(self, batch: Sequence[_Asked[Q, A]], answers: Sequence[A | BaseException]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Asked[Q, A], A | BaseException]]] = {}
        for each, answer in zip(batch, answers, strict=True):
            by_loop.setdefault(each.answer.get_loop(), []).append((each, answer))
        for loop, pairs in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, pairs)


def _settle(pairs: "list[tuple[_Asked[Q, A], A | BaseException]]") -> None:
    for each, answer in pairs:
        if each.answer.done():  # given up meanwhile
            continue
        if isinstance(answer, BaseException):
            each.answer.set_exception(answer)
        else:
            each.answer.set_result(answer)
