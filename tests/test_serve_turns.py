"""The loop takes on a bounded part of what is ready, in turn, and what is urgent always."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from selectors import EVENT_READ

import pytest

from retrieval_engine.serve.turns import Turns

MANY = 300


@pytest.fixture
def turns() -> Iterator[Turns]:
    """Many files, all of which have something to read; their numbers are their data."""
    with ExitStack() as stack:
        made = stack.enter_context(Turns())
        for number in range(MANY):
            ours, theirs = map(stack.enter_context, socket.socketpair())
            theirs.send(b"a")
            made.register(ours, EVENT_READ, number)
        yield made


def test_in_a_few_turns_each_file_had_its_part_once(turns: Turns) -> None:
    parts = [[key.data for key, _ in turns.select(0)] for _ in range(-(-MANY // 64))]
    assert {len(part) for part in parts} == {64}
    assert turns.is_behind
    served = [number for part in parts for number in part]
    assert set(served) == set(range(MANY))
    assert max(served.count(number) for number in served) <= 2  # the last turn begins anew


def test_what_is_urgent_is_in_every_turn_and_what_is_new_in_the_next(turns: Turns) -> None:
    fd = next(key.fd for key in turns.get_map().values() if key.data == MANY - 1)
    turns.first.add(fd)
    for _ in range(MANY // 64 + 1):
        assert fd in {key.fd for key, _ in turns.select(0)}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"a")
        turns.register(ours, EVENT_READ, "new")
        assert "new" in {key.data for key, _ in turns.select(0)}
        turns.unregister(ours)
    turns.unregister(fd)
    assert turns.first == set()


def test_what_fits_into_a_turn_is_given_at_once(turns: Turns) -> None:
    for key in list(turns.get_map().values())[50:]:
        turns.unregister(key.fileobj)
    assert len(turns.select(0)) == 50
    assert not turns.is_behind
