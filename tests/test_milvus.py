"""Milvus as it is used: exact, filtered, resumed, replaced under readers, updated, refused."""

import importlib
import json
import shlex
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine import Engine, build_index, open_index, open_store, update_index
from retrieval_engine.cli import main
from retrieval_engine.errors import FingerprintMismatch, IndexFailure, MissingExtra, UsageError
from retrieval_engine.index import ExactIndex, SavedIndex, backends, measured, milvus_server
from retrieval_engine.index.fresh import FreshIndex, fresh_index
from retrieval_engine.index.grouping import GroupedIndex
from retrieval_engine.index.measured import expect, recall_at_10
from retrieval_engine.index.milvus_server import Server
from retrieval_engine.index.recipes import Recipe, read_recipe
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.store import Store, StoreWriter
from retrieval_engine.testing.milvus_lite import milvus_server as served
from retrieval_engine.testing.vector_store import SOURCE, clustered, unit, write_store
from tests.children import in_child

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("milvus") / "data") as address:
        yield address


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


@pytest.mark.parametrize(("items", "vectors"), [(20_000, 1), (2_000, 32)])
def test_it_finds_what_exact_search_finds(
    items: int, vectors: int, uri: str, tmp_path: Path
) -> None:
    made = clustered(items * vectors, 32).reshape(items, vectors, 32).astype(np.float16)
    stored = image_vectors(write_store(tmp_path / "store", made, dtype="float16"), "itc", None)
    backend = backends.load("milvus")
    recipe = Recipe(
        name="milvus", backend="milvus", options={"uri": uri, "collection": f"v{vectors}"}
    )
    rows, _ = backend.build(recipe, stored, 0)
    index, queries = GroupedIndex(rows, vectors), unit(clustered(20, 32, seed=1) + 0.1)
    for share in (None, 0.5, 0.05, 0.001):
        allowed = None if share is None else np.random.default_rng(0).random(items) < share
        right = expect(ExactIndex(made), queries, allowed)
        assert recall_at_10(index, right) >= 0.99
        scores, found = index.search(queries, 10, allowed)
        assert allowed is None or allowed[found[found >= 0]].all()
        np.testing.assert_allclose(scores[:, : right.k], right.scores[:, : right.k], atol=2e-6)


def test_a_graph_reaches_its_target(uri: str, tmp_path: Path) -> None:
    vectors = clustered(800, 32)
    captions = [unit(vectors[i : i + 1] + 0.05) for i in range(800)]
    store = write_store(tmp_path / "store", vectors, captions, dtype="float16")
    file = tmp_path / "graph.toml"
    file.write_text('backend = "milvus"\noptions = { index_type = "HNSW" }\n')
    report = build_index(store, tmp_path / "index", recipe=str(file), uri=uri)
    assert report.recall_at_10 >= 0.95
    assert report.effort["ef"] >= 16
    assert min(report.filtered_recall_at_10.values()) >= 0.95
    assert open_index(tmp_path / "index").manifest.effort == report.effort


def test_a_wide_search_is_exact_beyond_what_one_answer_holds(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_engine.index.milvus_rows._MOST", 512)
    made = clustered(700 * 4, 8).reshape(700, 4, 8).astype(np.float16)
    stored = image_vectors(write_store(tmp_path / "store", made, dtype="float16"), "itc", None)
    recipe = Recipe(name="m", backend="milvus", options={"uri": uri, "collection": "wide"})
    rows, _ = backends.load("milvus").build(recipe, stored, 0)
    queries = clustered(2, 8, seed=3)
    for k, allowed in ((700, None), (600, np.arange(700) % 8 > 0), (90, np.arange(700) < 650)):
        _, found = GroupedIndex(rows, 4).search(queries, k, allowed)
        _, right = ExactIndex(made).search(queries, k, allowed)
        assert found.tolist() == right.tolist()


def test_a_killed_build_is_gone_on_with(uri: str, recipe: str, tmp_path: Path) -> None:
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
        f"build_index(open_store({str(store.path)!r}), {str(out)!r}, recipe={recipe!r}, uri={uri!r})\n"
    )
    assert in_child(partial(exec, code, {})).code == -signal.SIGKILL
    with pytest.raises(IndexFailure, match="no index"):
        open_index(out)
    [half] = collections(uri, out)
    found = Server(uri, 10).described(half)
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
        report = build_index(store, out, recipe=recipe, uri=uri)
    assert written == [("upsert", 500), ("insert", 500), ("insert", 500)]
    assert report.recall_at_10 == 1.0
    assert collections(uri, out) == [half]


def test_a_build_killed_while_it_is_measured_is_gone_on_with(
    uri: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path / "store", clustered(300, 16), dtype="float16")
    out = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr("retrieval_engine.index.build._tune", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_index(store, out, recipe=recipe, uri=uri)
    [whole] = collections(uri, out)
    monkeypatch.setattr("retrieval_engine.index.milvus_rows.write", None)
    assert build_index(store, out, recipe=recipe, uri=uri).recall_at_10 == 1.0
    assert of_folder(out)["collection"] == whole
    # Of another state of the store nothing is gone on with, and what is left goes.
    monkeypatch.undo()
    grown = write_store(tmp_path / "store", clustered(40, 16, seed=2), first=300, dtype="float16")
    with monkeypatch.context() as patch:
        patch.setattr("retrieval_engine.index.build._tune", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_index(grown, out, recipe=recipe, uri=uri)
    assert open_index(out).items == 300
    assert len(collections(uri, out)) == 2
    more = write_store(tmp_path / "store", clustered(5, 16, seed=3), first=340, dtype="float16")
    assert build_index(more, out, recipe=recipe, uri=uri).items == 345
    assert collections(uri, out) == [of_folder(out)["collection"]]


def test_readers_are_not_disturbed_by_a_rebuild(uri: str, tmp_path: Path) -> None:
    out, recipe = tmp_path / "index", tmp_path / "slow.toml"
    recipe.write_text('backend = "milvus"\noptions = { keep_old_s = 0.5 }\n')
    stores = [write_store(tmp_path / f"s{n}", clustered(n, 16, seed=n)) for n in (40, 60)]
    build_index(stores[0], out, recipe=str(recipe), uri=uri)
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
        build_index(store, out, recipe=str(recipe), uri=uri)
    done.set()
    reader.join()
    assert not faults
    assert seen == {40, 60}
    last = of_folder(out)
    assert collections(uri, out) == [last["collection"]]
    assert last["collection"] != first["collection"]
    named = Server(uri, 10).described(last["alias"])
    assert named is not None
    assert named[0] == last["collection"]


def test_what_is_foreign_or_half_built_is_refused(uri: str, recipe: str, tmp_path: Path) -> None:
    store, out = write_store(tmp_path / "store", clustered(50, 16)), tmp_path / "index"
    build_index(store, out, recipe=recipe, uri=uri)
    place, server = of_folder(out), Server(uri, 10)
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
        build_index(store, tmp_path / "second", recipe=str(other), uri=uri)
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
    vectors: int, uri: str, recipe: str, tmp_path: Path
) -> None:
    old, now = grown(tmp_path / "store", vectors)
    out, queries = tmp_path / "index", clustered(8, 16, seed=3)
    build_index(old, out, recipe=recipe, uri=uri)
    exact = image_vectors(now, "itc", None)
    _, best = exact.exact().search(queries, 9)
    expected = [[exact.gallery.ids[i] for i in row] for row in best]
    early = open_index(out)
    fresh = fresh_index(early, now, None)
    assert isinstance(fresh, FreshIndex)
    assert names(fresh, queries, 9) == expected
    before = names(early, queries, 9)

    with pytest.MonkeyPatch.context() as patch:  # an update that ends before it took effect
        patch.setattr("retrieval_engine.index.update.describe", lambda _: 1 / 0)
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
    server = Server(uri, 10)
    assert server.count(of_folder(out)["collection"]) == 180 * vectors
    held = server.described(of_folder(out)["collection"])
    assert held is not None
    assert held[1]["store_contents"] == index.manifest.contents


def test_a_server_that_goes_away_is_told_in_one_line(tmp_path: Path) -> None:
    store, out = write_store(tmp_path / "store", clustered(50, 16)), tmp_path / "index"
    file = tmp_path / "short.toml"
    file.write_text('backend = "milvus"\noptions = { timeout_s = 2 }\n')
    with served(tmp_path / "data") as address:
        build_index(store, out, recipe=str(file), uri=address)
        index = open_index(out)
    with pytest.raises(IndexFailure, match=rf"^Milvus at {address} cannot search: [^\n]+$"):
        index.search(clustered(1, 16), 3)
    with pytest.raises(IndexFailure, match=f"Milvus at {address} cannot"):
        open_index(out)
    with pytest.raises(IndexFailure, match="cannot be reached"):
        build_index(store, tmp_path / "new", recipe=str(file), uri="http://127.0.0.1:1")


def test_what_cannot_be_meant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, out = write_store(tmp_path / "store", clustered(5, 16)), tmp_path / "index"
    for uri, why in (
        ("", "`uri` is missing"),
        ("milvus://here", "http://HOST:PORT"),
        ("http://me:secret@here:1", "would be written into the index"),
    ):
        with pytest.raises(UsageError, match=why):
            build_index(store, out, recipe="milvus", uri=uri)
    with pytest.raises(UsageError, match="is of faiss, which has no server"):
        build_index(store, out, uri="http://here:1")
    monkeypatch.setitem(__import__("sys").modules, "pymilvus", None)
    with pytest.raises(MissingExtra, match="pymilvus is not installed"):
        build_index(store, out, recipe="milvus", uri="http://here:1")
    assert not out.exists()


def test_commands_and_engine_use_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(milvus_server.TOKEN, "root:secret")
    run = partial(CliRunner().invoke, main)
    engine = Engine("scenes:40?seed=7", model="vlre-tiny", store="embeddings")
    plain = engine.search("a dog on grass", k=5)
    result = run(["index", "--backend", "milvus", "--uri", "vectors.db"])
    assert result.exit_code == 0, result.output
    assert "1.0000 of exact search" in result.stdout
    found = run(["search", "a dog on grass", "-k", "5", "--json"])
    hits = [json.loads(line) for line in found.stdout.splitlines()]
    assert [hit["item_id"] for hit in hits] == [hit.item_id for hit in plain]
    indexed = Engine(store="embeddings", index="indices/built/default")
    assert [hit.item_id for hit in indexed.search("a dog on grass", k=5)] == [
        hit.item_id for hit in plain
    ]
    where = "ground = 'grass'"
    assert [hit.item_id for hit in indexed.search("a dog", k=5, where=where)] == [
        hit.item_id for hit in engine.search("a dog", k=5, where=where)
    ]
    written = [p.read_bytes() for p in Path("indices").rglob("*") if p.is_file()]
    assert not any(b"secret" in data for data in written)
    result = run(["index", "--update", "--uri", "vectors.db"])
    assert result.exit_code == 2
    assert "--uri is for building" in result.stderr


def test_the_benchmark_runs_and_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["milvus", "--tiny"])
    importlib.import_module("benchmarks.milvus").main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["way"] for line in lines} == {"milvus-flat", "flat-fp16"}
    assert all(line["recall_at_10"] == 1.0 for line in lines)
    assert all(line["p50_ms"] > 0 for line in lines)
    assert "pymilvus" in lines[0]["versions"]


def test_the_page_works_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "milvus.md").read_text(encoding="utf-8")
    lines = page.partition("```sh\n")[2].partition("```")[0].splitlines()
    shown = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("vlre ")]
    assert len(shown) == 7
    for words in shown:
        words = [uri if word == "http://127.0.0.1:19530" else word for word in words]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, f"vlre {words}\n{result.output}"
    options = page.partition("[options]\n")[2].partition("```")[0]
    (tmp_path / "page.toml").write_text(f'backend = "milvus"\n[options]\n{options}')
    assert read_recipe(tmp_path / "page.toml").options["collection"] == "photos"
