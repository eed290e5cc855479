"""Many questions asked of exact search at once have the answers that each has alone, bit by bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval_engine.errors import ShapeError
from retrieval_engine.index import ExactIndex
from retrieval_engine.metrics.candidates import Candidates
from retrieval_engine.metrics.pair_scores import exact_scores, rounded_scores
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
    for k in (1, 10):
        scores, items = index.search(queries, k)
        alone = [index.search(query[None], k) for query in queries]
        assert items.tolist() == [found[0].tolist() for _, found in alone]
        assert scores.tobytes() == np.concatenate([score for score, _ in alone]).tobytes()


def nearly_the_same(n: int, vectors: int) -> Vectors:
    """Rows whose scores are told apart by float64 alone."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((vectors, DIM)) + 1e-7 * rng.standard_normal((n, vectors, DIM))
    return rows.astype(np.float32)


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 0])
@pytest.mark.parametrize("vectors", [1, 3])
def test_many_pairs_are_rounded_as_each_alone(spread: float, vectors: int) -> None:
    rng = np.random.default_rng(5)
    images = 1 + spread * rng.standard_normal((400, vectors, DIM))
    captions = (1 + spread * rng.standard_normal((30, vectors, DIM))).astype(np.float32)
    caption, image = np.divmod(np.sort(rng.permutation(400 * 30)[:9000]), 400)
    if not spread:  # sums half-way between two of float32, but for their last digit
        images *= rng.random(images.shape)
        images *= (1 + 2.0**-24) / images.sum(axis=2, keepdims=True)
    found = rounded_scores(images, captions, image, caption)
    alone = exact_scores(images, captions, image, caption)
    assert found.tobytes() == alone.astype(np.float32).tobytes()


@pytest.mark.parametrize("device", ["cpu", "a device"])
@pytest.mark.parametrize("vectors", [1, 4])
def test_near_scores_are_in_the_order_of_exact_ones(
    vectors: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device != "cpu":  # what a GPU would be asked, asked of the CPU
        made = Candidates(drawn(1, QUERIES).astype(np.float32), "cpu")
        monkeypatch.setattr("retrieval_engine.index.exact._candidates", lambda *_: made)
    rows, queries = nearly_the_same(3000, vectors), drawn(1, QUERIES).astype(np.float32)
    exact = (rows.astype(np.float64) @ queries.T.astype(np.float64)).max(axis=1).T
    right = np.argsort(-exact.astype(np.float32), axis=1, kind="stable")[:, :10]
    scores, items = ExactIndex(rows).search(queries, 10)
    assert items.tolist() == right.tolist()
    assert scores.tolist() == np.take_along_axis(exact, right, 1).astype(np.float32).tolist()


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


def test_scores_beyond_float32_come_by_item_number() -> None:
    vectors = np.full((6, DIM), 1e25, np.float32)
    vectors[:2] = 1
    scores, items = ExactIndex(vectors).search(np.full((2, DIM), 1e20, np.float32), 5)
    assert items.tolist() == [[2, 3, 4, 5, 0]] * 2
    assert np.isinf(scores[:, :4]).all()
    assert np.isfinite(scores[:, 4]).all()


def test_infinite_halves_are_seen_as_such() -> None:
    vectors = drawn(0, 5000).astype(np.float16)
    vectors[77, 3] = np.inf
    query = np.abs(drawn(1, 1)).astype(np.float32)
    scores, items = ExactIndex(vectors).search(query, 2)
    assert (items[0, 0], scores[0, 0]) == (77, np.inf)
    with pytest.raises(ShapeError, match="is NaN"):
        ExactIndex(vectors).search(np.zeros((1, DIM), np.float32), 2)


def test_no_question_has_no_answer() -> None:
    scores, items = ExactIndex(drawn(0, 100)).search(np.empty((0, DIM), np.float32), 3)
    assert (scores.shape, items.shape) == ((0, 3), (0, 3))
