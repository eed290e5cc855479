"""What every index must do; the oracle is one line of NumPy."""

from abc import ABC, abstractmethod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval_engine.errors import ShapeError, UsageError
from retrieval_engine.index import Index
from retrieval_engine.testing.vector_store import clustered, unit

Vectors = NDArray[np.float32]


def brute_force(vectors: Vectors, queries: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
    """Best items by the maximum over their vectors; equal scores by item number."""
    scores = np.einsum("qd,nvd->qnv", queries, vectors).max(axis=2)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def small_numbers(n: int, v: int, d: int, seed: int) -> Vectors:
    """(n, v, d) of few different whole numbers: sums are exact, and ties are everywhere."""
    vectors = np.random.default_rng(seed).integers(-2, 3, (n, v, d)).astype(np.float32)
    vectors[~vectors.any(axis=2)] = 1  # a store refuses vectors of zeros
    return vectors


class IndexContract(ABC):
    """Subclass it with `build`, which indexes (n, v, d) vectors of n items."""

    # Largest difference of a score from the exact one; float16 storage rounds.
    tolerance = 2e-6
    # Share of places that hold the exact answer's item; rounding may swap neighbours.
    agreement = 0.99

    @abstractmethod
    def build(self, vectors: Vectors) -> Index:
        """An index over (n, v, d) float32 vectors; item i has the v vectors [i]."""

    def test_finds_what_brute_force_finds(self) -> None:
        vectors = clustered(500, 24, seed=1)[:, None]
        queries = clustered(40, 24, seed=2)
        scores, items = self.build(vectors).search(queries, 10)
        expected_scores, expected = brute_force(vectors, queries, 10)
        np.testing.assert_allclose(scores, expected_scores, atol=self.tolerance)
        assert (items == expected).mean() >= self.agreement
        assert scores.dtype == np.float32
        assert items.dtype == np.int64

    def test_an_item_scores_the_maximum_of_its_vectors(self) -> None:
        vectors = clustered(60 * 8, 16, seed=3).reshape(60, 8, 16)
        queries = clustered(20, 16, seed=4)
        scores, items = self.build(vectors).search(queries, 7)
        expected_scores, expected = brute_force(vectors, queries, 7)
        np.testing.assert_allclose(scores, expected_scores, atol=self.tolerance)
        assert (items == expected).mean() >= self.agreement
        assert all(len(set(row)) == 7 for row in items.tolist())

    # Each subclass runs the examples on an index of its own: nothing is shared between them.
    @settings(
        max_examples=8,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    @given(
        n=st.integers(1, 40),
        v=st.integers(1, 5),
        k=st.integers(1, 50),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_equal_scores_come_by_item_number(self, n: int, v: int, k: int, seed: int) -> None:
        vectors = small_numbers(n, v, 4, seed)
        queries = small_numbers(3, 1, 4, seed + 1)[:, 0]
        scores, items = self.build(vectors).search(queries, k)
        expected_scores, expected = brute_force(vectors, queries, k)
        assert items[:, :n].tolist() == expected.tolist()
        assert scores[:, :n].tolist() == expected_scores.tolist()
        assert (items[:, n:] == -1).all()
        assert (scores[:, n:] == -np.inf).all()

    def test_more_than_there_are_gives_all(self) -> None:
        vectors = clustered(7, 8)[:, None]
        scores, items = self.build(vectors).search(vectors[:2, 0], 12)
        assert scores.shape == items.shape == (2, 12)
        assert sorted(items[0, :7].tolist()) == list(range(7))
        assert (items[:, 7:] == -1).all()

    def test_permuting_the_gallery_permutes_the_answer(self) -> None:
        vectors = clustered(200, 16, seed=5)[:, None]
        queries = clustered(10, 16, seed=6)
        order = np.random.default_rng(0).permutation(200)
        _, items = self.build(vectors).search(queries, 5)
        _, permuted = self.build(vectors[order]).search(queries, 5)
        assert (order[permuted] == items).mean() >= self.agreement

    def test_queries_are_not_normalised(self) -> None:
        vectors = clustered(50, 8)[:, None]
        query = unit(np.ones((1, 8)))
        index = self.build(vectors)
        once, _ = index.search(query, 5)
        thrice, _ = index.search(3 * query, 5)
        np.testing.assert_allclose(thrice, 3 * once, rtol=1e-5)

    def test_a_batch_answers_as_its_queries_alone(self) -> None:
        vectors = clustered(300, 16, seed=8)[:, None]
        queries = clustered(40, 16, seed=9)
        index = self.build(vectors)
        scores, items = index.search(queries, 6)
        for i in (0, 17, 39):
            alone_scores, alone = index.search(queries[i : i + 1], 6)
            assert alone[0].tolist() == items[i].tolist()
            np.testing.assert_allclose(alone_scores[0], scores[i], atol=2e-6)

    @pytest.mark.parametrize("share", [0.5, 0.04, 0.0])
    def test_only_what_is_allowed_is_found(self, share: float) -> None:
        vectors = clustered(300 * 2, 16, seed=10).reshape(300, 2, 16)
        queries = clustered(9, 16, seed=11)
        allowed = np.random.default_rng(0).random(300) < share
        scores, items = self.build(vectors).search(queries, 8, allowed)
        expected_scores, expected = brute_force(vectors[allowed], queries, 8)
        n = min(8, int(allowed.sum()))
        assert (items[:, n:] == -1).all()
        assert allowed[items[:, :n]].all()
        found = np.flatnonzero(allowed)
        assert (items[:, :n] == found[expected]).mean() >= self.agreement if n else True
        np.testing.assert_allclose(scores[:, :n], expected_scores, atol=self.tolerance)

    def test_knows_its_size(self) -> None:
        index = self.build(clustered(12 * 3, 8).reshape(12, 3, 8))
        assert (index.items, index.dim) == (12, 8)

    @pytest.mark.parametrize("k", [0, -1])
    def test_refuses_a_k_below_one(self, k: int) -> None:
        with pytest.raises(UsageError, match="at least 1"):
            self.build(clustered(5, 8)[:, None]).search(clustered(1, 8), k)

    @pytest.mark.parametrize(
        "queries", [np.ones((1, 7), np.float32), np.ones(8, np.float32), np.full((1, 8), np.nan)]
    )
    def test_refuses_queries_it_cannot_compare(self, queries: Vectors) -> None:
        with pytest.raises(ShapeError):
            self.build(clustered(5, 8)[:, None]).search(queries, 1)
