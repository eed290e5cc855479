"""An index of several files: built with bounded memory, and updated without touching what stays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from retrieval_engine import build_index, open_index, open_store, update_index
from retrieval_engine.index import SavedIndex, faiss_parts
from retrieval_engine.index.backends import Rows
from retrieval_engine.index.behind import Behind, compare
from retrieval_engine.index.build_record import IndexManifest
from retrieval_engine.index.fresh import fresh_index
from retrieval_engine.records import Caption, Item, Modality
from retrieval_engine.store import Store, StoreWriter
from retrieval_engine.testing.vector_store import SOURCE, clustered, key_of, spec, write_store

SCAN = "factory:PCAR16,PQ8x4fs,Refine(SQfp16)"
DIM = 16


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part holds 300 rows, and every update makes one of its own."""
    monkeypatch.setattr(faiss_parts, "PART_BYTES", 300 * 4 * DIM)
    monkeypatch.setattr(faiss_parts, "_SMALL_BYTES", 0)
    monkeypatch.setattr(faiss_parts, "_SMALL", 0)
    monkeypatch.setattr("retrieval_engine.index.vectors._BLOCK_BYTES", 100 * 4 * DIM)


def files(index: SavedIndex) -> dict[str, int]:
    """Inode of each file of an index."""
    folder = index.path / index.manifest.folder
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def vectors_in(index: SavedIndex) -> list[str]:
    return sorted(name for name in files(index) if name.startswith("vectors"))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("recipe", ["flat", "ivf", "hnsw", SCAN])
def test_parts_answer_as_one_index(
    recipe: str, vectors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = clustered(900, DIM).reshape(-1, vectors, DIM)
    store = write_store(tmp_path / "store", made)
    build_index(store, tmp_path / "parts", recipe=recipe)
    monkeypatch.setattr(faiss_parts, "PART_BYTES", 1 << 30)
    build_index(store, tmp_path / "one", recipe=recipe)
    parts, one = open_index(tmp_path / "parts"), open_index(tmp_path / "one")
    assert len(vectors_in(parts)) >= 3
    assert vectors_in(one) == ["vectors.faiss"]
    for index in (parts, one):
        rows = cast(Rows, index.rows)
        rows.set_effort(list(rows.efforts())[-1])
    queries, n = clustered(30, DIM, seed=1), len(made)
    for allowed in (None, np.arange(n) % 7 == 0, np.arange(n) < 40, np.arange(n) >= n - 3):
        scores, items = parts.search(queries, 10, allowed)
        right_scores, right = one.search(queries, 10, allowed)
        there = right >= 0
        np.testing.assert_array_equal(items >= 0, there)
        assert allowed is None or allowed[items[there]].all()
        same = np.mean(items[there] == right[there])
        assert same >= (1 if recipe in ("flat", "ivf") else 0.9)
        if recipe in ("flat", "ivf"):
            np.testing.assert_allclose(scores[there], right_scores[there], rtol=1e-6)
    _, every = parts.search(queries[:1], n)
    assert len(set(every[0].tolist()) - {-1}) >= (n if recipe != "hnsw" else 0.9 * n)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("recipe", ["flat-fp16", "ivf-fp16", "hnsw", SCAN])
def test_an_update_leaves_alone_what_stays(recipe: str, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(500, DIM))
    build_index(store, tmp_path / "index", recipe=recipe)
    before = open_index(tmp_path / "index")
    were = files(before)
    store = write_store(tmp_path / "store", clustered(20, DIM, seed=1), first=500)
    assert update_index(store, tmp_path / "index").added == 20
    after = open_index(tmp_path / "index", verify=True)
    assert set(files(after)) - set(were) == {"vectors-2.faiss", "items-1.arrow"}
    assert files(after).items() >= were.items()  # second names of the same files
    assert not (before.path / before.manifest.folder).exists()
    hits, numbers = after.search(clustered(20, DIM, seed=1), 1)
    assert numbers[:, 0].tolist() == list(range(500, 520))
    np.testing.assert_allclose(hits, 1, atol=2e-3)
    assert [entry.id for entry in after.catalog.entries([499, 500])] == ["item-499", "item-500"]
    assert before.search(clustered(20, DIM, seed=1), 3)[1].max() < 500  # is open still
    assert fresh_index(after, store, None) is None


@pytest.mark.usefixtures("small_parts")
def test_what_goes_is_taken_out_of_its_part_alone(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(900, DIM))
    build_index(store, tmp_path / "index", recipe=SCAN)
    were = files(open_index(tmp_path / "index"))
    with StoreWriter.open(tmp_path / "store", spec=store.spec, features={}) as writer:
        seen = {f"item-{i}" for i in range(900) if not 250 <= i < 620}  # of all three parts
        writer.finish(SOURCE, failures=[], seen=seen)
    report = update_index(open_store(tmp_path / "store"), tmp_path / "index")
    assert (report.removed, report.items) == (370, 530)
    after = open_index(tmp_path / "index", verify=True)
    assert vectors_in(after) == ["vectors-1.faiss", "vectors.faiss"]  # one went whole
    assert set(files(after).values()) & set(were.values()) == {were["trained.faiss"]}
    are = files(after)
    kept = [i for i in range(900) if not 250 <= i < 620]
    _, found = after.search(clustered(900, DIM)[kept], 1)
    assert np.mean(found[:, 0] == np.arange(530)) > 0.98
    with StoreWriter.open(tmp_path / "store", spec=store.spec, features={}) as writer:
        writer.finish(SOURCE, failures=[], seen={f"item-{i}" for i in kept[1:]})
    update_index(open_store(tmp_path / "store"), tmp_path / "index")
    last = open_index(tmp_path / "index")
    assert files(last)["vectors-1.faiss"] == are["vectors-1.faiss"]
    assert files(last)["vectors.faiss"] != are["vectors.faiss"]


def test_a_small_last_part_takes_what_is_new(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(300, DIM))
    build_index(store, tmp_path / "index", recipe="flat")
    for n in range(3):
        store = write_store(tmp_path / "store", clustered(5, DIM, seed=n), first=300 + 5 * n)
        update_index(store, tmp_path / "index")
    index = open_index(tmp_path / "index", verify=True)
    assert (index.items, vectors_in(index)) == (315, ["vectors.faiss"])
    assert [e.id for e in index.catalog.entries([299, 300, 314])] == [
        f"item-{i}" for i in (299, 300, 314)
    ]


def test_an_index_from_before_there_were_parts_is_updated(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(400, DIM))
    build_index(store, tmp_path / "index", recipe="ivf")
    manifest = IndexManifest.read(tmp_path / "index")
    (tmp_path / "index" / manifest.folder / "trained.faiss").unlink()
    kept = tuple(file for file in manifest.files if file.name != "trained.faiss")
    replace(manifest, files=kept, store_files=()).write(tmp_path / "index")
    written = json.loads((tmp_path / "index" / "manifest.json").read_text())
    del written["store_files"], written["checksum"]
    (tmp_path / "index" / "manifest.json").write_text(json.dumps(written))
    store = write_store(tmp_path / "store", clustered(20, DIM, seed=1), first=400)
    assert update_index(store, tmp_path / "index").added == 20
    index = open_index(tmp_path / "index", verify=True)
    assert vectors_in(index) == ["vectors.faiss"]
    assert index.search(clustered(20, DIM, seed=1), 1)[1][:, 0].tolist() == list(range(400, 420))
    assert len(index.manifest.store_files) == len(store.manifest.files())


def behind_both_ways(index: Path, store: Store, split: str | None = None) -> tuple[Behind, Behind]:
    """An index compared by what was added to its store, and by all of it."""
    saved = open_index(index)
    quick = compare(saved, store, split)
    saved.manifest = replace(saved.manifest, store_files=())
    return quick, compare(saved, store, split)


def add(store: Store, *items: Item, keys: list[str], vectors: np.ndarray | None = None) -> Store:
    """A part with some items, and with vectors of the first keys."""
    features = {side: list(store.features(side).values()) for side in Modality}
    with StoreWriter.open(store.path, spec=store.spec, features=features) as writer:
        part = writer.part()
        if vectors is not None:
            part.add(Modality.IMAGES, keys[: len(vectors)], {"itc": vectors[:, None]})
        part.add_items(SOURCE, list(zip(items, keys, strict=False)))
        part.commit()
    return open_store(store.path)


def test_what_was_added_is_told_from_what_was_added_alone(tmp_path: Path) -> None:
    store = write_store(
        tmp_path / "store", clustered(60, DIM), splits=["train", "test", "test"] * 20
    )
    build_index(store, tmp_path / "all", recipe="flat")
    build_index(store, tmp_path / "test", recipe="flat", split="test")
    items = [
        Item(id=f"new-{i}", uri="/x", split=s) for i, s in enumerate(["test", "train", "test"])
    ]
    # The last has the content of an item that was there.
    keys = [key_of("new-0"), key_of("new-1"), key_of("item-4")]
    store = add(store, *items, keys=keys, vectors=clustered(2, DIM, seed=1))
    for name, split in (("all", None), ("test", "test")):
        quick, whole = behind_both_ways(tmp_path / name, store, split)
        assert quick.grown
        assert not whole.grown
        assert quick.catalog.table().equals(whole.catalog.table())
        np.testing.assert_array_equal(quick.held, whole.held)
        read, again = (b.store.read(Modality.IMAGES, "itc", b.rows) for b in (quick, whole))
        np.testing.assert_array_equal(read, again)
        assert len(read) == (3 if split is None else 2)


def test_more_than_growth_is_seen(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(40, DIM), splits=["a"] * 40)
    build_index(store, tmp_path / "index", recipe="flat", split="a")
    said = Item(id="item-3", uri="/y", split="a", captions=(Caption(id="c", text="a dog"),))
    changed = add(store, said, keys=[key_of("item-3")])
    quick, whole = behind_both_ways(tmp_path / "index", changed, "a")
    assert not quick.grown
    assert quick.catalog.table().equals(whole.catalog.table())
    update_index(changed, tmp_path / "index")
    assert open_index(tmp_path / "index").catalog.entries([3])[0].captions == said.captions
    moved = add(changed, replace(said, split="b"), keys=[key_of("item-3")])
    quick, _ = behind_both_ways(tmp_path / "index", moved, "a")
    assert (quick.grown, len(quick.catalog)) == (False, 39)
    with StoreWriter.open(store.path, spec=spec(), features={}) as writer:
        writer.finish(SOURCE, failures=[], seen={f"item-{i}" for i in range(39)})
    quick, _ = behind_both_ways(tmp_path / "index", open_store(store.path), "a")
    assert (quick.grown, len(quick.catalog)) == (False, 38)


def test_an_item_that_gets_its_features_later_is_found(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(20, DIM))
    late = Item(id="late", uri="/late")
    store = add(store, late, keys=[key_of("late")])
    build_index(store, tmp_path / "index", recipe="flat")
    assert open_index(tmp_path / "index").manifest.store_files == ()
    store = add(store, keys=[key_of("late")], vectors=clustered(1, DIM, seed=9))
    assert update_index(store, tmp_path / "index").added == 1
