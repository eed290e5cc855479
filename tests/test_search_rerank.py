"""Search re-ranked by the cross-encoder, with stored states and without."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine import open_encoder, open_store
from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.errors import UsageError
from retrieval_engine.models import Encoder
from retrieval_engine.search import Searcher
from tests import tiny

QUERIES = ["a dog on grass", "two red birds at night"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    path = tiny.save_blip(tmp_path_factory.mktemp("blip"))
    return open_encoder(str(path), device="cpu", dtype="float32")


@pytest.fixture(scope="module", params=["itc,tokens", "itc"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, encoder: Encoder
) -> Path:
    path = tmp_path_factory.mktemp("store") / "store"
    options = EncodeOptions(features=tuple(request.param.split(",")), store_dtype="float32")
    encode("scenes:30?seed=11&size=32", path, encoder=encoder, options=options)
    return path


def test_the_order_is_that_of_itm_plus_itc(store: Path, encoder: Encoder) -> None:
    engine = Searcher(open_store(store), encoder=encoder)
    plain = engine.search(QUERIES, k=30)
    reranked = engine.search(QUERIES, k=5, rerank=12)
    full = Searcher(open_store(store), encoder=encoder).search(QUERIES, k=30, rerank=30)
    for itc, some, every in zip(plain, reranked, full, strict=True):
        nearest = {hit.item_id for hit in itc[:12]}
        expected = [hit for hit in every if hit.item_id in nearest][:5]
        assert [hit.item_id for hit in some] == [hit.item_id for hit in expected]
        np.testing.assert_allclose(
            [hit.score for hit in some], [hit.score for hit in expected], atol=1e-5
        )
        assert [hit.rank for hit in some] == [1, 2, 3, 4, 5]
    gallery = open_store(store).gallery()
    itc_of = {hit.item_id: hit.score for hit in plain[0]}
    first = full[0][0]
    from retrieval_engine.encoding.image_tokens import ImageTokens

    tokens = ImageTokens(gallery.store, gallery.image_rows, gallery.uris, encoder)
    pair = np.array([[list(gallery.ids).index(first.item_id), 0]])
    logit = encoder.matcher().score_pairs(tokens, QUERIES[:1], pair)[0]
    assert first.score == pytest.approx(logit + itc_of[first.item_id], abs=1e-5)


def test_fewer_than_k_are_refused(store: Path, encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="`rerank` is 3"):
        Searcher(open_store(store), encoder=encoder).search(QUERIES, k=5, rerank=3)


def test_the_command_reranks_several_queries(store: Path) -> None:
    command = ["search", *QUERIES, "--store", str(store), "-k", "3", "--rerank", "6", "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    hits = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(hit["query"], hit["rank"]) for hit in hits] == [
        (query, rank) for query in QUERIES for rank in (1, 2, 3)
    ]


def test_a_moved_model_is_found_again(tmp_path: Path) -> None:
    here = tiny.save_blip(tmp_path / "here")
    store = tmp_path / "store"
    encode("scenes:6?seed=1&size=32", store, encoder=open_encoder(str(here), dtype="float32"))
    there = here.rename(tmp_path / "there")
    lost = CliRunner().invoke(main, ["search", "a dog", "--store", str(store)])
    assert lost.exit_code == 1
    assert "no checkpoint" in lost.stderr
    for line in (["search", "a dog"], ["eval", "--recall", "--rerank", "2"]):
        command = [*line, "--store", str(store), "--model", str(there), "--json"]
        assert CliRunner().invoke(main, command).exit_code == 0
    other = tiny.save_blip(tmp_path / "other", seed=9)
    command = ["search", "a dog", "--store", str(store), "--model", str(other)]
    assert "expected" in CliRunner().invoke(main, command).stderr


def test_another_model_judges_only_the_nearest(
    store: Path, encoder: Encoder, tmp_path: Path
) -> None:
    """Its own order of those images: what a search of its own store gives, among the same ones."""
    other = open_encoder(str(tiny.save_blip(tmp_path / "other", seed=5)), device="cpu")
    options = EncodeOptions(features=("itc", "tokens"), store_dtype="float32")
    encode("scenes:30?seed=11&size=32", tmp_path / "store", encoder=other, options=options)
    engine = Searcher(open_store(store), encoder=encoder, device="cpu")
    found = engine.search(QUERIES, k=4, rerank=9, rerank_model=str(tmp_path / "other"))
    theirs = Searcher(open_store(tmp_path / "store"), encoder=other)
    every = theirs.search(QUERIES, k=30, rerank=30)
    for hits, itc, own in zip(found, engine.search(QUERIES, k=9), every, strict=True):
        nearest = {hit.item_id for hit in itc}
        expected = [hit for hit in own if hit.item_id in nearest][:4]
        assert [hit.item_id for hit in hits] == [hit.item_id for hit in expected]
        np.testing.assert_allclose(
            [hit.score for hit in hits], [hit.score for hit in expected], atol=1e-4
        )
    with pytest.raises(UsageError, match="`rerank_model` needs `rerank`"):
        engine.search(QUERIES, k=4, rerank_model=str(tmp_path / "other"))
