"""Many questions asked of exact search at once have the answers that each has alone, bit by bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval_engine.errors import ShapeError
from retrieval_engine.index import ExactIndex
from retrieval_engine.testing.vector_store import unit

Vectors = NDArray[np.floating[Any]]
N, DIM, QUERIES = 100_000, 24, 50  # four blocks of rows


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval_engine.index.exact._BLOCK_BYTES", 4 * DIM * (1 << 15))


def drawn(seed: int, n: int = N) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((n, DIM)))


def repeated(vectors: Vectors) -> Vectors:
    return vectors[np.arange(N) % 3000]  # every score thirty times


def ascending(vectors: Vectors) -> Vectors:
    return vectors[np.argsort(vectors[:, 0])]  # each block is better than all before it


def of_many_lengths(vectors: Vectors) -> Vectors:
    return vectors * np.logspace(-4, 4, N)[::-1, None]


def in_half_precision(vectors: Vectors) -> Vectors:
    return vectors.astype(np.float16)


def several_each(vectors: Vectors) -> Vectors:
    return vectors.reshape(N // 4, 4, DIM)


@pytest.mark.parametrize(
    "change", [repeated, ascending, of_many_lengths, in_half_precision, several_each]
)
def test_a_question_among_many_is_answered_as_alone(change: Callable[[Vectors], Vectors]) -> None:
    index = ExactIndex(change(drawn(0).astype(np.float32)).astype(np.float32, copy=False))
    queries = (drawn(1, QUERIES) + 2 * np.eye(DIM)[0]).astype(np.float32)
    scores, items = index.search(queries, 10)
    alone = [index.search(query[None], 10) for query in queries]
    assert items.tolist() == [found[0].tolist() for _, found in alone]
    assert scores.tobytes() == np.concatenate([score for score, _ in alone]).tobytes()


def test_what_a_filter_leaves_is_answered_as_alone() -> None:
    index, queries = ExactIndex(drawn(0)), drawn(1, QUERIES).astype(np.float32)
    allowed = np.random.default_rng(2).random(N) < 0.7
    _, items = index.search(queries, 5, allowed)
    assert allowed[items].all()
    assert [index.search(q[None], 5, allowed)[1][0].tolist() for q in queries] == items.tolist()


def test_what_is_no_number_is_seen_in_any_block() -> None:
    vectors = drawn(0).astype(np.float32)
    vectors[70_000] = np.nan
    with pytest.raises(ShapeError, match="items 65536 to 98303 is NaN"):
        ExactIndex(vectors).search(drawn(1, QUERIES).astype(np.float32), 5)
