"""Milvus as it is used: exact, filtered, by command and `Engine`, and what it refuses."""

import importlib
import json
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine import Engine, build_index, open_index
from retrieval_engine.cli import main
from retrieval_engine.errors import IndexFailure, MissingExtra, UsageError
from retrieval_engine.index import ExactIndex, backends, measured, milvus_server
from retrieval_engine.index.grouping import GroupedIndex
from retrieval_engine.index.measured import expect, recall_at_10
from retrieval_engine.index.recipes import Recipe, read_recipe
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.testing.milvus_lite import milvus_server as served
from retrieval_engine.testing.vector_store import clustered, unit, write_store

pytestmark = pytest.mark.service


@pytest.fixture(autouse=True)
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build asks fewer queries of the server to know its recall and speed."""
    monkeypatch.setattr(measured, "_MAX_QUERIES", 100)
    monkeypatch.setattr(measured, "_TIMED_QUERIES", 5)


@pytest.mark.parametrize(("items", "vectors"), [(20_000, 1), (2_000, 32)])
def test_it_finds_what_exact_search_finds(
    items: int, vectors: int, milvus_uri: str, tmp_path: Path
) -> None:
    made = clustered(items * vectors, 32).reshape(items, vectors, 32).astype(np.float16)
    stored = image_vectors(write_store(tmp_path / "store", made, dtype="float16"), "itc", None)
    backend = backends.load("milvus")
    recipe = Recipe(
        name="milvus", backend="milvus", options={"uri": milvus_uri, "collection": f"v{vectors}"}
    )
    (folder := tmp_path / "index").mkdir()
    backend.build(recipe, stored, folder, backends.How())
    index = GroupedIndex(backend.open_rows(folder, {}), vectors)
    queries = unit(clustered(10, 32, seed=1) + 0.1)
    for share in (None, 0.5, 0.05, 0.001):
        allowed = None if share is None else np.random.default_rng(0).random(items) < share
        right = expect(ExactIndex(made), queries, allowed)
        assert recall_at_10(index, right) >= 0.99
        scores, found = index.search(queries, 10, allowed)
        assert allowed is None or allowed[found[found >= 0]].all()
        np.testing.assert_allclose(scores[:, : right.k], right.scores[:, : right.k], atol=2e-6)


def test_a_graph_reaches_its_target(milvus_uri: str, tmp_path: Path) -> None:
    vectors = clustered(800, 32)
    captions = [unit(vectors[i : i + 1] + 0.05) for i in range(800)]
    store = write_store(tmp_path / "store", vectors, captions, dtype="float16")
    file = tmp_path / "graph.toml"
    file.write_text('backend = "milvus"\noptions = { index_type = "HNSW" }\n')
    report = build_index(store, tmp_path / "index", recipe=str(file), uri=milvus_uri)
    assert report.recall_at_10 >= 0.95
    assert report.effort["ef"] >= 16
    assert min(report.filtered_recall_at_10.values()) >= 0.95
    assert open_index(tmp_path / "index").manifest.effort == report.effort


def test_a_wide_search_is_exact_beyond_what_one_answer_holds(
    milvus_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_engine.index.milvus_rows._MOST", 512)
    made = clustered(700 * 4, 8).reshape(700, 4, 8).astype(np.float16)
    stored = image_vectors(write_store(tmp_path / "store", made, dtype="float16"), "itc", None)
    recipe = Recipe(name="m", backend="milvus", options={"uri": milvus_uri, "collection": "wide"})
    backend = backends.load("milvus")
    (folder := tmp_path / "index").mkdir()
    backend.build(recipe, stored, folder, backends.How())
    rows = backend.open_rows(folder, {})
    queries = clustered(2, 8, seed=3)
    for k, allowed in ((700, None), (600, np.arange(700) % 8 > 0), (90, np.arange(700) < 650)):
        _, found = GroupedIndex(rows, 4).search(queries, k, allowed)
        _, right = ExactIndex(made).search(queries, k, allowed)
        assert found.tolist() == right.tolist()


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
    monkeypatch.setattr("benchmarks.milvus.ASKED", 5)
    monkeypatch.setattr("sys.argv", ["milvus", "--tiny"])
    importlib.import_module("benchmarks.milvus").main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["way"] for line in lines} == {"milvus-flat", "flat-fp16"}
    assert all(line["recall_at_10"] == 1.0 for line in lines)
    assert all(line["p50_ms"] > 0 for line in lines)
    assert "pymilvus" in lines[0]["versions"]


def test_the_page_works_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, milvus_uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "milvus.md").read_text(encoding="utf-8")
    lines = page.partition("```sh\n")[2].partition("```")[0].splitlines()
    shown = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("vlre ")]
    assert len(shown) == 7
    for words in shown:
        words = [milvus_uri if word == "http://127.0.0.1:19530" else word for word in words]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, f"vlre {words}\n{result.output}"
    options = page.partition("[options]\n")[2].partition("```")[0]
    (tmp_path / "page.toml").write_text(f'backend = "milvus"\n[options]\n{options}')
    assert read_recipe(tmp_path / "page.toml").options["collection"] == "photos"
