"""Queries of several parts: what is wanted, what is not, and how much."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine import Engine, Mix, encode, open_encoder
from retrieval_engine.cli import main
from retrieval_engine.encoding import EncodeOptions
from retrieval_engine.errors import UsageError
from retrieval_engine.index.grouping import late_interaction
from retrieval_engine.search.queries import combined, mix, weighted
from retrieval_engine.sources import read_bytes
from retrieval_engine.testing.images import jpeg
from retrieval_engine.testing.vector_store import clustered
from tests import tiny, tiny_blip2


@pytest.fixture(scope="module", params=["blip", "blip2"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """30 scenes by a tiny model of each family."""
    root = tmp_path_factory.mktemp(request.param)
    save = tiny.save_blip if request.param == "blip" else tiny_blip2.save_blip2
    encoder = open_encoder(str(save(root / "model")), device="cpu", dtype="float32")
    options = EncodeOptions(features=("itc",), store_dtype="float32")
    encode("scenes:30?seed=11&size=32", root / "store", encoder=encoder, options=options)
    return Engine(store=root / "store", device="cpu")


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def test_words_are_added_by_their_weights(engine: Engine) -> None:
    dog, cat = engine.encode("a dog"), engine.encode("a cat")
    query = unit(2 * dog - cat)[0]
    images = engine.vectors().reshape(30, -1, len(query))
    scores = (images @ query).max(axis=1)
    hits = engine.search({"a dog": 2, "a cat": -1}, 5)
    np.testing.assert_allclose([h.score for h in hits], np.sort(scores)[::-1][:5], atol=1e-5)
    assert hits.query == "2:a dog, not a cat"
    assert engine.search(Mix((("a dog", 4), ("a cat", -2))), 5) == hits
    thrice, once = engine.search({"a dog": 3}, 5), engine.search("a dog", 5)
    assert [h.item_id for h in thrice] == [h.item_id for h in once]


def test_a_picture_and_words_are_added_query_by_query(engine: Engine) -> None:
    words = engine.encode("a dog")
    image = engine.encode(jpeg(3)).reshape(-1, words.shape[1])  # (1, d) or (q, d)
    query = unit(image + 0.5 * words).astype(np.float32)
    images = engine.vectors().reshape(30, -1, words.shape[1])
    scores = late_interaction(query, images)
    hits = engine.search({jpeg(3): 1, "a dog": 0.5}, 30)
    found = {entry.id: score for entry, score in zip(engine, scores, strict=True)}
    np.testing.assert_allclose([h.score for h in hits], [found[h.item_id] for h in hits], atol=1e-5)
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_what_is_not_wanted_goes_down(engine: Engine) -> None:
    unwanted = next(iter(engine)).id
    [plain] = [h.score for h in engine.search("a dog", 30) if h.item_id == unwanted]
    picture = read_bytes(engine[unwanted].uri)
    less = engine.search(Mix((("a dog", 1), (picture, -1))), 30)
    [score] = [h.score for h in less if h.item_id == unwanted]
    assert score < plain


def test_nothing_but_what_is_not_wanted_is_explained() -> None:
    with pytest.raises(UsageError, match="only what not to find"):
        Mix((("a cage", -1),))
    with pytest.raises(UsageError, match="a part of the query is empty"):
        Mix((("a dog", 1), (" ", -1)))
    with pytest.raises(UsageError, match="the weight of 'a dog' is nan"):
        Mix((("a dog", float("nan")),))
    vector = clustered(1, 8)
    with pytest.raises(UsageError, match="'a, not a' cancel each other"):
        combined([(vector, 1), (vector, -1)], "a, not a")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("a dog", ("a dog", 1)),
        ("2:golden retriever", ("golden retriever", 2)),
        (".5:a dog", ("a dog", 0.5)),
        ("1.5:3:10 to Yuma", ("3:10 to Yuma", 1.5)),
        ("2:", ("2:", 1)),
        ("dog:2", ("dog:2", 1)),
    ],
)
def test_weights_are_typed_before_the_words(typed: str, meant: tuple[str, float]) -> None:
    assert weighted(typed) == meant


def test_a_query_alone_stays_as_it_is() -> None:
    assert mix("3:10 to Yuma") == "3:10 to Yuma"
    assert mix("", plus=["2:a dog"], minus=["3:a cage"]) == Mix((("a dog", 2), ("a cage", -3)))


def run(*line: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(word) for word in line])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_takes_what_is_wanted_and_what_is_not(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "beach.jpg").write_bytes(jpeg(5))
    store = ["--store", engine.store_path, "-k", "3"]
    beach = tmp_path / "beach.jpg"
    code, out, err = run("search", "2:a dog", "--minus", "a cage", "--plus", beach, *store)
    assert code == 0, err
    hits = engine.search(Mix((("a dog", 2), (beach, 1), ("a cage", -1))), 3)
    assert [line.split("\t")[2] for line in out.splitlines()] == [h.item_id for h in hits]
    code, same, err = run(
        "search", "--image", beach, "--plus", "2:a dog", "--minus", "a cage", *store
    )
    assert (code, same) == (0, out), err
    code, _, err = run("search", "--minus", "a cage", *store)
    assert (code, "the query says only what not to find" in err) == (2, True)
    code, _, err = run("search", "a dog", "--minus", "a cat", "--rerank", "5", *store)
    assert (code, "--rerank matches words with pictures" in err) == (2, True)
    code, page, err = run("search", "a dog", "--offset", "2", *store)
    assert [line.split("\t")[0] for line in page.splitlines()] == ["3", "4", "5"], err
