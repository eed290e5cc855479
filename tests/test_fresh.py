"""A search sees the store as it is now; an index catches up without being built again."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine import Engine, build_index, open_encoder, open_index, open_store, update_index
from retrieval_engine.cli import main
from retrieval_engine.encoding import EncodeOptions
from retrieval_engine.errors import FingerprintMismatch, IndexFailure
from retrieval_engine.index import ExactIndex
from retrieval_engine.index.fresh import FreshIndex, fresh_index
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.search import Searcher
from retrieval_engine.store import Store, StoreWriter
from retrieval_engine.testing.images import jpeg
from retrieval_engine.testing.vector_store import SOURCE, clustered, write_store

SCAN = "factory:PCAR16,PQ8x4fs,Refine(SQfp16)"
RECIPES = ["flat", "flat-fp16", "ivf", "ivf-fp16", "ivf-sq8", "factory:PCA8,IVF4,Flat", SCAN]


def grown(path: Path, vectors: int = 1) -> tuple[Store, Store]:
    """A store of 400 items as it was, and as it is: 50 of them gone, 30 new ones come."""
    before, after = clustered(400 * vectors, 16), clustered(30 * vectors, 16, seed=1)
    old = write_store(path, before.reshape(400, vectors, 16))
    write_store(path, after.reshape(30, vectors, 16), first=400)
    with StoreWriter.open(path, spec=old.spec, features={}) as writer:
        seen = {f"item-{i}" for i in range(430) if not 20 <= i < 70}
        assert writer.finish(SOURCE, failures=[], seen=seen) == 50
    return old, open_store(path)


def exact_answer(store: Store, queries: np.ndarray, k: int) -> list[list[str]]:
    vectors = image_vectors(store, "itc", None)
    _, items = vectors.exact().search(queries, k)
    return [[vectors.gallery.ids[i] for i in row] for row in items.tolist()]


@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("recipe", ["flat", "ivf", "hnsw", SCAN])
def test_a_search_knows_what_is_newer_and_nothing_that_is_gone(
    recipe: str, vectors: int, tmp_path: Path
) -> None:
    old, now = grown(tmp_path / "store", vectors)
    build_index(old, tmp_path / "index", recipe=recipe)
    fresh = fresh_index(open_index(tmp_path / "index"), now, None)
    assert isinstance(fresh, FreshIndex)
    assert (fresh.items, fresh.newer, fresh.gone) == (380, 30, 50)
    queries = clustered(25, 16, seed=3)
    _, items = fresh.search(queries, 10)
    found = [[entry.id for entry in fresh.catalog.entries(row)] for row in items]
    expected = exact_answer(now, queries, 10)
    same = [len(set(a) & set(b)) / 10 for a, b in zip(found, expected, strict=True)]
    # Queries of other clusters than the index was tuned with find less in an approximate one.
    assert np.mean(same) >= (1 if recipe == "flat" else 0.8)
    assert not {name for row in found for name in row} & {f"item-{i}" for i in range(20, 70)}
    _, every = fresh.search(queries[:2], 500)
    there = every[0][every[0] >= 0]
    assert len(set(there.tolist())) == len(there)
    assert 380 >= len(there) >= (370 if recipe == "hnsw" else 380)
    allowed = np.arange(380) % 3 == 0
    _, some = fresh.search(queries, 10, allowed)
    assert allowed[some].all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_updated_index_holds_what_a_new_one_would(recipe: str, tmp_path: Path) -> None:
    old, now = grown(tmp_path / "store")
    index = tmp_path / "index"
    build_index(old, index, recipe=recipe)
    reader = open_index(index)
    before = reader.search(clustered(5, 16, seed=3), 10)
    report = update_index(now, index)
    assert (report.added, report.removed, report.items) == (30, 50, 380)
    again = reader.search(clustered(5, 16, seed=3), 10)
    np.testing.assert_array_equal(before[1], again[1])  # who has it open is not disturbed
    updated = open_index(index, verify=True)
    assert fresh_index(updated, now, None) is None
    assert updated.manifest.changed_since_build == 80
    build_index(now, tmp_path / "new", recipe=recipe)
    queries = clustered(40, 16, seed=3)
    expected = exact_answer(now, queries, 10)

    def recall(path: Path) -> float:
        opened = open_index(path)
        _, items = opened.search(queries, 10)
        found = [[entry.id for entry in opened.catalog.entries(row[row >= 0])] for row in items]
        return float(np.mean([len(set(a) & set(b)) for a, b in zip(found, expected, strict=True)]))

    assert recall(index) >= recall(tmp_path / "new") - 0.2
    _, every = updated.search(queries[:1], 380)
    assert sorted(every[0].tolist()) == list(range(380))
    assert (update_index(now, index).added, update_index(now, index).removed) == (0, 0)


def test_a_graph_grows_and_does_not_shrink(tmp_path: Path) -> None:
    old, now = grown(tmp_path / "store")
    build_index(old, tmp_path / "index", recipe="hnsw")
    with pytest.raises(IndexFailure, match="cannot update") as raised:
        update_index(now, tmp_path / "index")
    assert "flat and ivf" in raised.value.hint
    assert open_index(tmp_path / "index").items == 400
    more = write_store(tmp_path / "other", clustered(100, 16))
    build_index(more, tmp_path / "grows", recipe="hnsw")
    more = write_store(tmp_path / "other", clustered(20, 16, seed=1), first=100)
    assert update_index(more, tmp_path / "grows").items == 120
    hit = Searcher(more, tmp_path / "grows").search(clustered(20, 16, seed=1)[7], 1)[0]
    assert hit.item_id == "item-107"


def test_an_update_says_when_building_again_pays(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(200, 16))
    build_index(store, tmp_path / "index", recipe="ivf")
    store = write_store(tmp_path / "store", clustered(100, 16, seed=1), first=200)
    [remark] = update_index(store, tmp_path / "index").remarks
    assert remark.startswith("33% of the items changed since it was built: `build_index(")


def test_an_update_says_when_another_recipe_pays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path / "store", clustered(200, 16))
    build_index(store, tmp_path / "index")
    assert update_index(store, tmp_path / "index").remarks == ()
    monkeypatch.setattr("retrieval_engine.index.recipes._FLAT_ROWS", 150)
    [remark] = update_index(store, tmp_path / "index").remarks
    assert remark.startswith("200 rows are compared one by one: `build_index(")
    assert remark.endswith("makes ivf-scan-fp16 of them, which is much faster")


def test_an_index_of_other_vectors_is_not_updated(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(50, 16))
    with pytest.raises(IndexFailure, match="no index at"):
        update_index(store, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    build_index(store, tmp_path / "index")
    shutil.rmtree(tmp_path / "store")
    other = write_store(tmp_path / "store", clustered(50, 16), weights="w2")
    with pytest.raises(FingerprintMismatch):
        update_index(other, tmp_path / "index")


def test_an_engine_sees_what_others_write(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_store(store, clustered(20, 16))
    engine = Engine(store=store)
    assert len(engine) == 20
    write_store(store, clustered(5, 16, seed=1), first=20)
    assert len(engine) == 25
    assert engine.search(clustered(5, 16, seed=1)[2], 1)[0].item_id == "item-22"


def run(*line: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(word) for word in line])
    return result.exit_code, result.stdout, result.stderr


def test_a_folder_is_searched_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        (tmp_path / "pictures" / f"{i}.jpg").write_bytes(jpeg(i))
    code, out, err = run("search", "a dog on grass", "pictures", "-k", "3")
    assert (code, len(out.splitlines())) == (0, 3), err
    assert run("index", "--recipe", "flat")[0] == 0
    (tmp_path / "pictures" / "new.jpg").write_bytes(jpeg(20))
    (tmp_path / "pictures" / "3.jpg").unlink()
    (tmp_path / "pictures" / "bad.jpg").write_bytes(b"no picture")
    code, out, err = run("search", "--image", "pictures/new.jpg", "pictures", "-k", "9")
    assert code == 0, err
    names = [line.split("\t")[2] for line in out.splitlines()]
    assert names[0] == "new.jpg"
    assert sorted(names) == [*(f"{i}.jpg" for i in range(8) if i != 3), "new.jpg"]
    assert "failed: bad.jpg" in err
    assert "1 items are newer than indices/built/default: compared one by one" in err
    assert "`vlre index --update --store embeddings --index indices/built/default`" in err
    code, out, err = run("index", "--update")
    assert (code, "1 items added, 1 removed, 8 now" in out) == (0, True), err
    code, again, err = run("search", "--image", "pictures/new.jpg", "-k", "9")
    assert (code, err) == (0, "")
    assert [line.split("\t")[2] for line in again.splitlines()] == names


@pytest.mark.parametrize("recipe", [None, "flat", "flat-fp16", "ivf", "hnsw"])
def test_a_query_has_the_same_scores_alone_and_among_others(
    recipe: str | None, tmp_path: Path
) -> None:
    store = write_store(tmp_path / "store", clustered(3000, 96))
    if recipe:
        build_index(store, tmp_path / "index", recipe=recipe)
    searcher = Searcher(store, tmp_path / "index" if recipe else None)
    queries = clustered(45, 96, seed=5)
    together = searcher.search(list(queries), 7)
    for number in (0, 6, 19, 21, 44):
        assert searcher.search(queries[number], 7) == together[number]


def test_words_have_the_same_scores_alone_and_among_others(tmp_path: Path) -> None:
    engine = Engine(store=tmp_path / "store", device="cpu")
    engine.add("scenes:20?seed=7", options=EncodeOptions(features=("itc", "tokens")))
    words = ["a dog", "a red car on the street at night", "two birds", "snow"]
    words += [f"{'very ' * n}large house" for n in range(5)]
    for rerank in (0, 8):
        together = engine.search(words, 5, rerank=rerank)
        for number in (0, 1, 3, 8):
            alone = engine.search(words[number], 5, rerank=rerank)
            assert alone == together[number], words[number]


def test_products_of_one_shape_are_equal_wherever_a_query_stands() -> None:
    vectors = clustered(5000, 256)
    index = ExactIndex(vectors)
    queries = clustered(37, 256, seed=1)
    scores, items = index.search(queries, 20)
    for number in range(37):
        alone_scores, alone = index.search(queries[number : number + 1], 20)
        np.testing.assert_array_equal(alone[0], items[number])
        np.testing.assert_array_equal(alone_scores[0], scores[number])


def test_the_model_is_not_loaded_again_for_a_changed_store(tmp_path: Path) -> None:
    engine = Engine("scenes:6?seed=7", store=tmp_path / "store")
    engine.search("a dog", 1)
    encoder = engine.searcher().opened
    engine.add("scenes:6?seed=8")
    assert len(engine) == 12
    engine.search("a dog", 1)
    assert engine.searcher().opened is encoder
    assert open_encoder("vlre-tiny").spec.fingerprint == open_store(tmp_path / "store").fingerprint
