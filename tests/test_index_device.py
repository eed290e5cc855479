"""Building an index with a GPU; what can be seen without one is seen without one."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from retrieval_engine import build_index, open_index
from retrieval_engine.errors import ShapeError, UsageError
from retrieval_engine.index import ExactIndex, faiss_gpu
from retrieval_engine.index.exact import _candidates
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.metrics.candidates import Candidates
from retrieval_engine.testing.vector_store import clustered, write_store


@pytest.mark.parametrize("vectors", [1, 4])
def test_a_device_proposes_what_the_cpu_does(vectors: int) -> None:
    block = clustered(300 * vectors, 16).astype(np.float16).reshape(300, vectors, 16)
    queries = clustered(9, 16, seed=1)
    floor = np.full(9, -np.inf, np.float32)
    for k in (1, 7, 400):
        ours, theirs = (make(queries, "cpu")(block, k, floor) for make in (_candidates, Candidates))
        assert ours.tolist() == theirs.tolist()
    scores = np.einsum("qd,nvd->qnv", queries, block.astype(np.float32)).max(axis=2)
    floor = np.sort(scores, axis=1)[:, -3] + np.float32(1e-4)  # two of each reach it
    query, item = Candidates(queries, "cpu")(block, 7, floor)
    assert np.bincount(query, minlength=9).tolist() == [2] * 9
    assert (scores[query, item] >= floor[query]).all()
    block[3] = np.nan
    assert 3 in Candidates(queries, "cpu")(block, 3, floor)[1]


FACTORIES = [
    "IVF16,SQfp16",
    "IVF16,Flat",
    "PCAR8,IVF16,PQ4x4fs,Refine(SQfp16)",
    "HNSW8,Flat",
    "Flat",
]


@pytest.mark.parametrize("factory", FACTORIES)
def test_lists_found_by_a_copy_of_the_centroids_are_the_same_lists(factory: str) -> None:
    vectors, copies = clustered(2000, 16), []

    def copy(index: Any) -> Any:  # stands where a GPU takes it
        copies.append(index)
        return faiss.clone_index(index)

    def build(by: faiss_gpu.Copy | None) -> Any:
        index = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
        with faiss_gpu.coarse_steps_by(by, index):
            index.train(vectors)
        for half in (vectors[:1000], vectors[1000:]):
            with faiss_gpu.coarse_steps_by(by, index):
                index.add(half)
        return faiss.serialize_index(index)

    np.testing.assert_array_equal(build(None), build(copy))
    assert len(copies) == (3 if "IVF" in factory else 0)


def test_a_faiss_without_a_gpu_says_what_it_does_instead(tmp_path: Path) -> None:
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this faiss has one")
    copy, line = faiss_gpu.gpu_copier("cuda:0")
    assert copy is None
    assert line.startswith(f"this faiss ({faiss.__version__}) cannot use cuda:0: lists are made on")
    assert faiss_gpu.gpu_copier("cpu") == (None, "")
    store = write_store(tmp_path / "store", clustered(50, 8))
    with pytest.raises(UsageError, match="cuda:99 is not here"):
        build_index(store, tmp_path / "index", device="cuda:99")
    assert not (tmp_path / "index").exists()


@pytest.mark.gpu
def test_exact_search_and_a_build_on_cuda(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(30_000, 64), dtype="float16")
    vectors, queries = image_vectors(store, "itc", None), clustered(50, 64, seed=1)
    for allowed in (None, np.arange(30_000) % 5 == 0):
        scores, items = vectors.exact("cuda").search(queries, 10, allowed)
        right_scores, right = vectors.exact().search(queries, 10, allowed)
        assert items.tolist() == right.tolist()
        assert scores.tobytes() == right_scores.tobytes()
    report = build_index(store, tmp_path / "index", recipe="ivf-fp16", device="cuda")
    assert report.recall_at_10 >= 0.95
    assert open_index(tmp_path / "index", verify=True).items == 30_000
    nan = np.full((4, 1, 64), np.nan, np.float32)
    with pytest.raises(ShapeError, match="NaN"):
        ExactIndex.streaming(lambda _: iter([(0, nan)]), 4, (1, 64), "cuda").search(queries, 2)
