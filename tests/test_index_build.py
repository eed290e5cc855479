"""Building, opening, replacing and damaging index folders."""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval_engine.errors import FeatureMissing, IndexFailure, UsageError
from retrieval_engine.index import ExactIndex, build_index, open_index
from retrieval_engine.index.build_record import MANIFEST, IndexManifest
from retrieval_engine.index.directory import replacing
from retrieval_engine.index.faiss_parameters import WIDENINGS
from retrieval_engine.index.grouping import GroupedIndex
from retrieval_engine.index.measured import expect, recall_at_10
from retrieval_engine.store import Store
from retrieval_engine.testing.vector_store import clustered, key_of, spec, unit, write_store
from tests.children import in_child


def test_flat_finds_everything_and_says_so(tmp_path: Path) -> None:
    vectors = clustered(400, 32)
    store = write_store(tmp_path / "store", vectors)
    report = build_index(store, tmp_path / "index", recipe="flat")
    assert report.recall_at_10 == 1.0
    assert (report.items, report.rows, report.recipe) == (400, 400, "flat")
    assert (
        report.bytes
        == sum(f.stat().st_size for f in (tmp_path / "index").rglob("*") if f.is_file())
        - (tmp_path / "index" / MANIFEST).stat().st_size
    )
    assert report.bytes > 400 * 32 * 4
    assert 0 < report.p50_ms < 1000
    assert report.seconds > 0


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """3,000 vectors in float16 with a caption near each."""
    vectors = clustered(3000, 32)
    captions = [unit(vectors[i : i + 1] + 0.05) for i in range(3000)]
    return write_store(tmp_path_factory.mktemp("narrow"), vectors, captions, dtype="float16")


@pytest.mark.parametrize(
    "recipe",
    ["hnsw", "hnsw-fp16", "ivf", "ivf-fp16", "ivf-sq8", "scan-fp16", "ivf-scan-fp16"],
)
def test_approximate_kinds_reach_their_target(tmp_path: Path, narrow: Store, recipe: str) -> None:
    vectors = clustered(3000, 32)
    report = build_index(narrow, tmp_path / "index", recipe=recipe)
    assert report.recall_at_10 >= 0.95
    assert (report.queries, report.queries_are, report.remarks) == (1000, "captions", ())
    effort = {"hnsw": "efSearch", "ivf": "nprobe", "scan": "k_factor_rf"}
    assert next(iter(report.effort)) == effort[recipe.split("-")[0]]
    index = open_index(tmp_path / "index")
    fresh = unit(clustered(200, 32, seed=0) + 0.1)
    expected = expect(ExactIndex(vectors), fresh)
    assert recall_at_10(index, expected) >= 0.9


def test_rows_that_codes_tell_little_of_reach_the_target_by_more_of_them(tmp_path: Path) -> None:
    # As many directions as there are, all alike: a PCA leaves out a quarter of every row.
    vectors = unit(np.random.default_rng(0).standard_normal((10_000, 32)))
    store = write_store(tmp_path / "store", vectors, dtype="float16")
    report = build_index(store, tmp_path / "index", recipe="ivf-scan-fp16")
    assert report.recall_at_10 >= 0.95
    assert report.remarks == (report.remarks[-1],)  # that queries are images, and nothing else
    rows: Any = open_index(tmp_path / "index").rows
    efforts = [tuple(effort.values()) for effort in rows.efforts()]
    assert efforts == sorted(efforts)
    assert efforts[-1] == (50, 512)


@pytest.mark.parametrize(
    "recipe",
    ["ivf", "factory:IVF50,PQ8x4fs,Refine(SQfp16)", "factory:PCA8,IVF50,Flat"],
)
def test_a_wider_search_finds_more_than_the_probed_lists_hold(tmp_path: Path, recipe: str) -> None:
    store = write_store(tmp_path / "store", clustered(2000, 16))
    report = build_index(store, tmp_path / "index", recipe=recipe)
    assert report.queries_are == "images"
    assert "words lie further" in report.remarks[-1]
    index = open_index(tmp_path / "index")
    effort = dict(index.manifest.effort)
    assert effort["nprobe"] < 50
    _, items = index.search(clustered(3, 16, seed=1), 2000)
    assert [sorted(row) for row in items.tolist()] == [list(range(2000))] * 3
    assert index.rows.effort == effort  # type: ignore[attr-defined]


def test_queries_are_turned_as_the_rows_are_and_not_moved(tmp_path: Path) -> None:
    # Rows that share a direction: with the queries moved by their mean, other rows come first.
    vectors = unit(clustered(900, 16) + np.full(16, 2, np.float32))
    store = write_store(tmp_path / "store", vectors, [unit(v[None]) for v in vectors])
    build_index(store, tmp_path / "index", recipe="factory:PCAR16,Flat")
    queries = unit(clustered(50, 16, seed=2))
    expected = expect(ExactIndex(vectors), queries)
    assert recall_at_10(open_index(tmp_path / "index"), expected) == 1.0


@pytest.mark.parametrize("recipe", ["scan-fp16", "ivf-scan-fp16"])
def test_a_scan_of_short_codes_knows_filters(tmp_path: Path, narrow: Store, recipe: str) -> None:
    vectors = clustered(3000, 32)
    report = build_index(narrow, tmp_path / "index", recipe=recipe)
    assert min(report.filtered_recall_at_10.values()) >= 0.95
    index = open_index(tmp_path / "index")
    queries = unit(clustered(100, 32, seed=0) + 0.1)
    for share in (0.002, 0.05, 0.3, 0.8):
        allowed = np.random.default_rng(0).random(3000) < share
        _, items = index.search(queries, 10, allowed)
        assert allowed[items[items >= 0]].all()
        assert (items >= 0).sum() == 100 * min(10, allowed.sum())
        assert recall_at_10(index, expect(ExactIndex(vectors), queries, allowed)) >= 0.9


def test_a_wider_filter_looks_through_more_lists_of_codes(tmp_path: Path, narrow: Store) -> None:
    build_index(narrow, tmp_path / "index", recipe="ivf-scan-fp16")
    rows: Any = open_index(tmp_path / "index").rows
    index = GroupedIndex(rows, 1)
    queries = unit(np.random.default_rng(1).standard_normal((100, 32)))  # far from all lists
    allowed = np.random.default_rng(0).random(3000) < 0.8
    right = expect(ExactIndex(clustered(3000, 32)), queries, allowed)
    found = []
    for wider in WIDENINGS:
        rows.set_effort({"nprobe": 1, "k_factor_rf": 16, "widening": wider})
        found.append(recall_at_10(index, right))
    assert found[0] < 0.8
    assert found[-1] > 0.9


@pytest.mark.parametrize("recipe", ["ivf-fp16", "scan-fp16", "ivf-scan-fp16"])
def test_few_rows_are_compared_whole_whatever_the_recipe(tmp_path: Path, recipe: str) -> None:
    store = write_store(tmp_path / "store", clustered(20, 16))
    report = build_index(store, tmp_path / "index", recipe=recipe)
    assert IndexManifest.read(tmp_path / "index").factory == "SQfp16"
    assert report.effort == {}
    assert report.recall_at_10 == 1.0


def test_half_precision_loses_nothing_of_a_half_precision_store(tmp_path: Path) -> None:
    vectors = clustered(300, 24).astype(np.float16)
    store = write_store(tmp_path / "store", vectors, dtype="float16")
    build_index(store, tmp_path / "index", recipe="flat-fp16")
    queries = clustered(20, 24, seed=3)
    scores, items = open_index(tmp_path / "index").search(queries, 10)
    exact_scores, exact = ExactIndex(vectors).search(queries, 10)
    assert items.tolist() == exact.tolist()
    np.testing.assert_allclose(scores, exact_scores, atol=5e-7)


def test_the_folder_describes_itself(tmp_path: Path) -> None:
    vectors = clustered(30 * 4, 8).reshape(30, 4, 8)
    captions = [clustered(2, 8, seed=i) for i in range(30)]
    store = write_store(tmp_path / "store", vectors, captions)
    build_index(store, tmp_path / "index", recipe="flat")
    index = open_index(tmp_path / "index")
    manifest = index.manifest
    assert (manifest.items, manifest.rows_per_item, manifest.rows, manifest.dim) == (30, 4, 120, 8)
    assert manifest.fingerprint == store.fingerprint == manifest.encoder.fingerprint
    assert manifest.feature_fingerprint == spec().part("vision", "image")
    assert {f.name for f in manifest.files} == {"vectors.faiss", "trained.faiss", "items.arrow"}
    entry = index.catalog.entries([7])[0]
    assert (entry.id, entry.uri, entry.source) == ("item-7", "/pictures/item-7.jpg", "vectors")
    assert [c.text for c in entry.captions] == ["item-7 says 0", "item-7 says 1"]
    assert entry.meta == {"n": 7}
    assert index.catalog.image_rows(store, np.array([7])).tolist() == (
        store.rows("images", [key_of("item-7")]).tolist()  # type: ignore[arg-type]
    )


def test_only_the_items_of_a_split(tmp_path: Path) -> None:
    splits = ["test" if i % 3 == 0 else "train" for i in range(30)]
    store = write_store(tmp_path / "store", clustered(30, 8), splits=splits)
    report = build_index(store, tmp_path / "index", split="test")
    index = open_index(tmp_path / "index")
    assert (report.items, index.manifest.split) == (10, "test")
    assert [e.id for e in index.catalog.entries(range(3))] == ["item-0", "item-3", "item-6"]
    with pytest.raises(UsageError, match="dev"):
        build_index(store, tmp_path / "other", split="dev")


@pytest.mark.parametrize("victim", ["vectors.faiss", "items.arrow"])
def test_one_flipped_bit_is_refused(tmp_path: Path, victim: str) -> None:
    store = write_store(tmp_path / "store", clustered(50, 16))
    build_index(store, tmp_path / "index", recipe="flat")
    [data_folder] = (tmp_path / "index").glob("data-*")
    path = data_folder / victim
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IndexFailure, match=f"{victim} is damaged"):
        open_index(tmp_path / "index")
    path.write_bytes(data[:-1])
    with pytest.raises(IndexFailure, match="bytes, its manifest says"):
        open_index(tmp_path / "index", verify=False)
    path.unlink()
    with pytest.raises(IndexFailure, match="is missing"):
        open_index(tmp_path / "index", verify=False)


def test_a_manifest_that_cannot_be_understood_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexFailure, match="no index at"):
        open_index(tmp_path / "nothing")
    folder = tmp_path / "index"
    build_index(write_store(tmp_path / "store", clustered(50, 16)), folder)
    value = json.loads((folder / MANIFEST).read_text())
    unsigned = {name: member for name, member in value.items() if name != "checksum"}
    for text, why in (
        ("{", "cannot read"),
        (json.dumps(value | {"format": 2}), "has format 2, this version reads 1"),
        (json.dumps(value | {"items": 49}), "its checksum differs"),
        (json.dumps(unsigned | {"surprise": 1}), "is no index manifest"),
        (json.dumps(unsigned | {"items": 49}), "its manifest says 49"),
        (json.dumps(unsigned).replace('"items": 50', '"items": 1e999'), "beyond all floats"),
        (json.dumps(unsigned | {"folder": "a\0b"}), "NUL"),
        (json.dumps(unsigned | {"folder": "../store"}), "no plain name"),
        ("[" * 100_000, "nested too deep"),
    ):
        (folder / MANIFEST).write_text(text)
        with pytest.raises(IndexFailure, match=why):
            open_index(folder)


def test_rebuilding_replaces_the_index_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "built" / "default"
    build_index(write_store(tmp_path / "a", clustered(50, 16)), out)
    before = open_index(out)
    build_index(write_store(tmp_path / "b", clustered(70, 16, seed=1)), out)
    assert open_index(out).items == 70
    assert [p.name for p in out.parent.iterdir()] == ["default"]
    # What was opened before the swap keeps its mapped files.
    assert before.search(clustered(1, 16), 50)[1].min() == 0


def test_a_build_that_fails_leaves_the_old_index(tmp_path: Path) -> None:
    out = tmp_path / "index"
    store = write_store(tmp_path / "store", clustered(50, 16))
    build_index(store, out)
    with pytest.raises(IndexFailure, match="faiss cannot build 'IVF4096,Flat'"):
        build_index(store, out, recipe="factory:IVF4096,Flat")
    assert open_index(out).items == 50
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index", "store"]


def test_nothing_but_an_index_is_replaced(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(50, 16))
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "a.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="is no index"):
        build_index(store, precious)
    with pytest.raises(UsageError, match="is no index"):
        build_index(store, precious / "a.jpg")
    assert (precious / "a.jpg").read_bytes() == b"x"
    empty = tmp_path / "empty"
    empty.mkdir()
    build_index(store, empty)
    assert open_index(empty).items == 50


def test_an_index_stays_where_it_was_when_the_swap_fails(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build_index(write_store(tmp_path / "store", clustered(50, 16)), out)

    def build_and_fail() -> None:
        with replacing(out):
            pass  # no manifest was written: the swap itself fails

    with pytest.raises(IndexFailure, match="cannot write"):
        build_and_fail()
    assert open_index(out).items == 50


def test_what_killed_builds_left_is_cleared_away(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(50, 16))
    out = tmp_path / "index"
    build_index(store, out)
    (out / "data-01234567").mkdir()
    (out / "data-01234567" / "vectors.faiss").write_bytes(b"half")
    (out / "data-mine").mkdir()  # no name that a build gives
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="faiss cannot make"):
        build_index(store, out, recipe="factory:Flta")
    assert open_index(out).items == 50
    current = open_index(out).manifest.folder
    assert {p.name for p in out.iterdir()} == {"manifest.json", current, "data-mine", "notes.txt"}


def test_a_folder_where_the_first_build_was_killed_is_built_in(tmp_path: Path) -> None:
    out = tmp_path / "index"
    (out / "data-01234567").mkdir(parents=True)
    (out / "build.lock").write_text("process 1 on elsewhere\n")
    build_index(write_store(tmp_path / "store", clustered(50, 16)), out)
    assert sorted(p.name[:5] for p in out.iterdir()) == ["data-", "manif"]


def test_a_build_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(50, 16))
    with pytest.raises(UsageError, match="faiss cannot make"):
        build_index(store, tmp_path / "deep" / "down" / "index", recipe="factory:Flta")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_an_index_of_before_opens_and_is_replaced(tmp_path: Path) -> None:
    """Its files lay beside the manifest, which had no member `folder`."""
    store = write_store(tmp_path / "store", clustered(50, 16))
    out = tmp_path / "index"
    build_index(store, out)
    [data] = out.glob("data-*")
    for file in data.iterdir():
        file.rename(out / file.name)
    data.rmdir()
    value = json.loads((out / MANIFEST).read_text())
    del value["folder"], value["checksum"]
    (out / MANIFEST).write_text(json.dumps(value))
    assert open_index(out).search(clustered(1, 16), 50)[1].min() == 0
    build_index(store, out)
    assert sorted(p.name[:5] for p in out.iterdir()) == ["data-", "manif"]
    assert open_index(out).items == 50


def test_a_second_build_is_told_who_is_building(tmp_path: Path) -> None:
    out = tmp_path / "index"
    store = write_store(tmp_path / "store", clustered(50, 16))
    with replacing(out) as folder:
        (folder / MANIFEST).write_text("{}")
        with pytest.raises(IndexFailure, match=f"is being built by process {os.getpid()} on"):
            build_index(store, out)


def test_there_is_an_index_at_every_moment_of_a_swap(tmp_path: Path) -> None:
    """Readers open it again and again while it is rebuilt: always an old or a new one, whole."""
    out = tmp_path / "index"
    stores = [write_store(tmp_path / f"s{n}", clustered(n, 16, seed=n)) for n in (40, 60)]
    build_index(stores[0], out, recipe="flat")
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            index = open_index(out)
            seen.append(len(index.catalog.entries(range(index.items))))

    with ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        for round_ in range(12):
            build_index(stores[round_ % 2], out, recipe="flat")
        done.set()
        for reader in readers:
            reader.result()
    assert set(seen) == {40, 60}


@pytest.mark.parametrize("call", ["os.replace", "shutil.rmtree", "os.fsync"])
def test_a_build_killed_at_any_step_leaves_an_index(tmp_path: Path, call: str) -> None:
    out = tmp_path / "index"
    write_store(tmp_path / "store", clustered(60, 16))
    build_index(write_store(tmp_path / "old", clustered(50, 16)), out, recipe="flat")
    found = set()
    for step in range(2):
        code = (
            "import os, shutil, signal\n"
            "from retrieval_engine.index import build_index\n"
            "from retrieval_engine.store import open_store\n"
            f"real, calls = {call}, iter(range(99))\n"
            "def deadly(*arguments, **options):\n"
            f"    if next(calls) == {step}: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return real(*arguments, **options)\n"
            f"{call} = deadly\n"
            f"build_index(open_store({str(tmp_path / 'store')!r}), {str(out)!r}, recipe='flat')\n"
        )
        ended = in_child(partial(exec, code, {}))
        found.add(ended.code)
        assert open_index(out).items in (50, 60)
        if ended.code == 0:
            break
    assert -signal.SIGKILL in found


def test_what_cannot_be_indexed_is_explained(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(5, 8))
    with pytest.raises(FeatureMissing, match="no image feature 'pooled'; it holds: itc"):
        build_index(store, tmp_path / "index", feature="pooled")
    empty = write_store(tmp_path / "empty", np.empty((0, 8), np.float32))
    with pytest.raises(IndexFailure, match="holds no images"):
        build_index(empty, tmp_path / "index")


def test_searches_from_several_threads_agree(tmp_path: Path) -> None:
    build_index(write_store(tmp_path / "store", clustered(800, 16)), tmp_path / "i", recipe="ivf")
    index = open_index(tmp_path / "i")
    queries = clustered(60, 16, seed=2)
    _, expected = index.search(queries, 5)
    answers: dict[int, list[list[int]]] = {}

    def ask(thread: int) -> None:
        found = [
            index.search(q[None], 5 if i % 7 else 700)[1][0, :5] for i, q in enumerate(queries)
        ]
        answers[thread] = [row.tolist() for row in found]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        same = [a == b for a, b in zip(answers[n], expected.tolist(), strict=True)]
        # Every seventh asked for more than the probed lists hold, and so looked at more of them.
        assert all(same[i] for i in range(60) if i % 7)
