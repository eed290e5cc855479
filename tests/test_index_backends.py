"""The contract of an index, kept by exact search and by each recipe."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from retrieval_engine.errors import ShapeError
from retrieval_engine.index import ExactIndex, Index
from retrieval_engine.index.exact import Block, _from_keys, _ordered_keys
from retrieval_engine.index.grouping import late_interaction, merge_queries
from retrieval_engine.testing import BackendContract, IndexContract
from retrieval_engine.testing.index_contract import Vectors
from retrieval_engine.testing.vector_store import clustered, unit


class TestExactIndex(IndexContract):
    def build(self, vectors: Vectors) -> Index:
        return ExactIndex(vectors)


class TestExactIndexInSmallBlocks(IndexContract):
    def build(self, vectors: Vectors) -> Index:
        def blocks(_: int) -> Iterator[Block]:
            for start in range(0, len(vectors), 7):
                yield start, vectors[start : start + 7]

        return ExactIndex.streaming(blocks, len(vectors), vectors.shape[1:])


class TestFlat(BackendContract):
    def recipe(self, folder: Path) -> str:
        return "flat"


class TestFlatHalfPrecision(BackendContract):
    tolerance = 1e-3
    agreement = 0.97

    def recipe(self, folder: Path) -> str:
        return "flat-fp16"


class TestHnsw(BackendContract):
    def recipe(self, folder: Path) -> str:
        return "hnsw"


class TestIvf(BackendContract):
    def recipe(self, folder: Path) -> str:
        return "ivf"


class TestIvfHalfPrecision(BackendContract):
    tolerance = 1e-3
    agreement = 0.97

    def recipe(self, folder: Path) -> str:
        return "ivf-fp16"


class TestScanHalfPrecision(BackendContract):
    tolerance = 1e-3
    agreement = 0.97

    def recipe(self, folder: Path) -> str:
        return "scan-fp16"


class TestListsOfCodesHalfPrecision(BackendContract):
    tolerance = 1e-3
    agreement = 0.97

    def recipe(self, folder: Path) -> str:
        return "ivf-scan-fp16"


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3, 4)])
def test_exact_index_refuses_what_is_no_list_of_vectors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="is needed"):
        ExactIndex(np.ones(shape, np.float32))


def test_exact_index_refuses_nan_among_its_vectors() -> None:
    vectors = clustered(10, 4)
    vectors[3] = np.nan
    with pytest.raises(ShapeError, match="items 0 to 9 is NaN"):
        ExactIndex(vectors).search(clustered(1, 4), 2)


def test_keys_order_as_scores_do_and_give_them_back() -> None:
    scores = np.array([[-np.inf, -3.5, -1e-30, -0.0, 0.0, 1e-30, 0.25, 0.25, 7.0]], np.float32)
    keys = _ordered_keys(scores, np.arange(5, 14))
    back, items = _from_keys(keys)
    assert back.tolist() == scores.tolist()
    assert items.tolist() == [list(range(5, 14))]
    # -0.0 equals 0.0, and of equals the lower item is larger.
    assert np.argsort(keys[0])[::-1].tolist() == [8, 6, 7, 5, 3, 4, 2, 1, 0]


def test_several_vectors_of_one_query_merge_by_their_maximum() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.7, -np.inf]], np.float32)
    items = np.array([[4, 2, 9], [2, 7, -1]])
    merged, numbers = merge_queries(scores, items, 3)
    assert numbers.tolist() == [4, 2, 7]
    assert merged.tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_merged_queries_equal_one_search_by_the_maximum() -> None:
    vectors, query = clustered(300, 8)[:, None], clustered(6, 8, seed=4)
    merged_scores, merged = merge_queries(*ExactIndex(vectors).search(query, 10), 10)
    best = (vectors[:, 0] @ query.T).max(axis=1)
    assert merged.tolist() == np.argsort(-best, kind="stable")[:10].tolist()
    np.testing.assert_allclose(merged_scores, np.sort(best)[::-1][:10], atol=1e-6)


def test_late_interaction_knows_the_same_picture_again() -> None:
    rng = np.random.default_rng(0)
    gallery = unit(rng.standard_normal((20, 6, 12)))
    # One vector that is alike in all pictures would make all of them equal by the plain maximum.
    gallery[:, 0] = unit(np.ones(12))
    scores = late_interaction(gallery[13], gallery)
    assert scores.argmax() == 13
    assert scores[13] == pytest.approx(1, abs=1e-6)
    by_hand = [np.mean([max(a @ b for b in image) for a in gallery[13]]) for image in gallery]
    np.testing.assert_allclose(scores, by_hand, atol=1e-6)
