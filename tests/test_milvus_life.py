"""A collection of Milvus from build to drop: resumed, replaced under readers, updated, foreign."""

import json
import signal
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from retrieval_engine import build_index, open_index, open_store, update_index
from retrieval_engine.errors import FingerprintMismatch, IndexFailure
from retrieval_engine.index import SavedIndex, measured
from retrieval_engine.index.fresh import FreshIndex, fresh_index
from retrieval_engine.index.milvus_server import Server
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.store import Store, StoreWriter
from retrieval_engine.testing.vector_store import SOURCE, clustered, write_store
from tests.children import in_child

pytestmark = pytest.mark.service


@pytest.fixture(autouse=True)
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build asks fewer queries of the server to know its recall and speed."""
    monkeypatch.setattr(measured, "_MAX_QUERIES", 100)
    monkeypatch.setattr(measured, "_TIMED_QUERIES", 5)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "quick.toml").write_text('backend = "milvus"\noptions = { keep_old_s = 0 }\n')
    return str(tmp_path / "quick.toml")


def collections(uri: str, out: Path) -> list[str]:
    """Those of an index folder."""
    server, owner = Server(uri, 10), str(out.resolve())
    named = {name: server.described(name) for name in server.call("list_collections")}
    return sorted(name for name, found in named.items() if found and found[1]["owner"] == owner)


def of_folder(out: Path) -> dict[str, str]:
    folder = out / open_index(out).manifest.folder
    found: dict[str, str] = json.loads((folder / "collection.json").read_text())
    return found


def test_a_killed_build_is_gone_on_with(milvus_uri: str, recipe: str, tmp_path: Path) -> None:
    made = clustered(3000, 16)
    store = write_store(tmp_path / "store", made, dtype="float16")
    out = tmp_path / "index"
    code = (
        "import os, signal\n"
        "from retrieval_engine.index import build_index, milvus_rows, vectors\n"
        "from retrieval_engine.store import open_store\n"
        "vectors._BLOCK_BYTES = 4 * 16 * 500\n"
        "real, calls = milvus_rows.write, iter(range(99))\n"
        "def deadly(*arguments):\n"
        "    real(*arguments)\n"
        "    if next(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "milvus_rows.write = deadly\n"
        f"build_index(open_store({str(store.path)!r}), {str(out)!r}, recipe={recipe!r}, uri={milvus_uri!r})\n"
    )
    assert in_child(partial(exec, code, {})).code == -signal.SIGKILL
    with pytest.raises(IndexFailure, match="no index"):
        open_index(out)
    [half] = collections(milvus_uri, out)
    found = Server(milvus_uri, 10).described(half)
    assert found is not None
    assert (found[1]["state"], found[1]["done"]) == ("half built", "1500")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrieval_engine.index.vectors._BLOCK_BYTES", 4 * 16 * 500)
        written = []
        call = Server.call

        def counting(self: Server, name: str, *arguments: object, **named: object) -> object:
            if name in ("insert", "upsert"):
                written.append((name, len(arguments[1])))  # type: ignore[arg-type]
            return call(self, name, *arguments, **named)

        patch.setattr(Server, "call", counting)
        report = build_index(store, out, recipe=recipe, uri=milvus_uri)
    assert written == [("upsert", 500), ("insert", 500), ("insert", 500)]
    assert report.recall_at_10 == 1.0
    assert collections(milvus_uri, out) == [half]


def test_a_build_killed_while_it_is_measured_is_gone_on_with(
    milvus_uri: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path / "store", clustered(300, 16), dtype="float16")
    out = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr("retrieval_engine.index.build._tune", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_index(store, out, recipe=recipe, uri=milvus_uri)
    [whole] = collections(milvus_uri, out)
    monkeypatch.setattr("retrieval_engine.index.milvus_rows.write", None)
    assert build_index(store, out, recipe=recipe, uri=milvus_uri).recall_at_10 == 1.0
    assert of_folder(out)["collection"] == whole
    # Of another state of the store nothing is gone on with, and what is left goes.
    monkeypatch.undo()
    grown = write_store(tmp_path / "store", clustered(40, 16, seed=2), first=300, dtype="float16")
    with monkeypatch.context() as patch:
        patch.setattr("retrieval_engine.index.build._tune", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_index(grown, out, recipe=recipe, uri=milvus_uri)
    assert open_index(out).items == 300
    assert len(collections(milvus_uri, out)) == 2
    more = write_store(tmp_path / "store", clustered(5, 16, seed=3), first=340, dtype="float16")
    assert build_index(more, out, recipe=recipe, uri=milvus_uri).items == 345
    assert collections(milvus_uri, out) == [of_folder(out)["collection"]]


def test_readers_are_not_disturbed_by_a_rebuild(milvus_uri: str, tmp_path: Path) -> None:
    out, recipe = tmp_path / "index", tmp_path / "slow.toml"
    recipe.write_text('backend = "milvus"\noptions = { keep_old_s = 0.5 }\n')
    stores = [write_store(tmp_path / f"s{n}", clustered(n, 16, seed=n)) for n in (40, 60)]
    build_index(stores[0], out, recipe=str(recipe), uri=milvus_uri)
    first = of_folder(out)
    query, seen, done = clustered(1, 16), set(), threading.Event()
    faults: list[Exception] = []

    def read() -> None:
        index = open_index(out)
        while not done.is_set():
            try:
                seen.add(int((index.search(query, 99)[1] >= 0).sum()))
                if index.manifest.folder != open_index(out).manifest.folder:
                    index = open_index(out)
            except IndexFailure as error:
                faults.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for store in (stores[1], stores[1]):  # the same rows twice: they get a collection of their own
        build_index(store, out, recipe=str(recipe), uri=milvus_uri)
    done.set()
    reader.join()
    assert not faults
    assert seen == {40, 60}
    last = of_folder(out)
    assert collections(milvus_uri, out) == [last["collection"]]
    assert last["collection"] != first["collection"]
    named = Server(milvus_uri, 10).described(last["alias"])
    assert named is not None
    assert named[0] == last["collection"]


def test_what_is_foreign_or_half_built_is_refused(
    milvus_uri: str, recipe: str, tmp_path: Path
) -> None:
    store, out = write_store(tmp_path / "store", clustered(50, 16)), tmp_path / "index"
    build_index(store, out, recipe=recipe, uri=milvus_uri)
    place, server = of_folder(out), Server(milvus_uri, 10)
    for key, value, kind, why in (
        ("state", "half built", IndexFailure, "is half built"),
        ("contents", "beef", IndexFailure, f"says contents {place['contents']}, the .* says beef"),
        ("feature_fingerprint", "f00", FingerprintMismatch, f"expected {store.fingerprint[:12]}"),
    ):
        found = server.described(place["collection"])
        assert found is not None
        server.mark(place["collection"], {key: value})
        with pytest.raises(kind, match=why):
            open_index(out)
        server.mark(place["collection"], found[1])
    assert open_index(out).items == 50
    other = tmp_path / "other.toml"
    other.write_text(f'backend = "milvus"\noptions = {{ collection = "{place["alias"]}" }}\n')
    with pytest.raises(IndexFailure, match=f"belongs to {out} .*, not to {tmp_path / 'second'}"):
        build_index(store, tmp_path / "second", recipe=str(other), uri=milvus_uri)
    server.drop(place["collection"])
    with pytest.raises(IndexFailure, match="is not there: it was replaced or dropped"):
        open_index(out)


def grown(path: Path, vectors: int) -> tuple[Store, Store]:
    """A store of 200 items as it was, and as it is: 50 of them gone, 30 new ones come."""
    shape = (-1, vectors, 16)
    old = write_store(path, clustered(200 * vectors, 16).reshape(shape))
    write_store(path, clustered(30 * vectors, 16, seed=1).reshape(shape), first=200)
    with StoreWriter.open(path, spec=old.spec, features={}) as writer:
        seen = {f"item-{i}" for i in range(230) if not 20 <= i < 70}
        writer.finish(SOURCE, failures=[], seen=seen)
    return old, open_store(path)


def names(index: FreshIndex | SavedIndex, queries: np.ndarray, k: int) -> list[list[str]]:
    _, items = index.search(queries, k)
    return [[e.id for e in index.catalog.entries(row[row >= 0])] for row in items]


@pytest.mark.parametrize("vectors", [1, 4])
def test_an_update_is_seen_by_all_who_open_it_and_by_nobody_before(
    vectors: int, milvus_uri: str, recipe: str, tmp_path: Path
) -> None:
    old, now = grown(tmp_path / "store", vectors)
    out, queries = tmp_path / "index", clustered(8, 16, seed=3)
    build_index(old, out, recipe=recipe, uri=milvus_uri)
    exact = image_vectors(now, "itc", None)
    _, best = exact.exact().search(queries, 9)
    expected = [[exact.gallery.ids[i] for i in row] for row in best]
    early = open_index(out)
    fresh = fresh_index(early, now, None)
    assert isinstance(fresh, FreshIndex)
    assert names(fresh, queries, 9) == expected
    before = names(early, queries, 9)

    with pytest.MonkeyPatch.context() as patch:  # an update that ends before it took effect
        patch.setattr("retrieval_engine.index.update.describe_folder", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            update_index(now, out)
    assert names(open_index(out), queries, 9) == names(early, queries, 9) == before

    report = update_index(now, out)
    assert (report.added, report.removed, report.items) == (30, 50, 180)
    index = open_index(out)
    assert fresh_index(index, now, None) is None
    assert sorted(names(index, queries, 180)[0]) == sorted(exact.gallery.ids)
    found = [set(row) for row in names(index, queries, 9)]
    assert found == [set(row) for row in expected]
    # Who had it open finds what is still there, and nothing that it does not know.
    assert len(names(early, queries, 200)[0]) == 150
    server = Server(milvus_uri, 10)
    assert server.count(of_folder(out)["collection"]) == 180 * vectors
    held = server.described(of_folder(out)["collection"])
    assert held is not None
    assert held[1]["store_contents"] == index.manifest.contents
