"""The API over a real store and model: right answers, one form of errors, changes without a loss."""

import base64
import csv
import io
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from retrieval_engine import Engine, encode, open_encoder
from retrieval_engine.cli import main
from retrieval_engine.serve import ServeSettings, running
from retrieval_engine.testing.images import jpeg
from tests.serving import ALL, PATIENCE_S, make_store, served


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def engine(store: Path) -> Engine:
    """The library's own answers."""
    return Engine(store=store, index=store.with_name("index"))


@pytest.fixture(scope="module")
def client(store: Path) -> Iterator[httpx.Client]:
    with served(store) as made:
        yield made


@pytest.fixture(scope="module")
def image(client: httpx.Client, engine: Engine) -> bytes:
    """The file of the first item."""
    return client.get(f"/api/items/{next(iter(engine)).id}/image").content


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["hits"]]


def test_words_find_what_the_library_finds(client: httpx.Client, engine: Engine) -> None:
    answer = client.post("/api/search", json={"text": "a dog on grass", "k": 5})
    hits = engine.search("a dog on grass", 5)
    assert ids(answer) == [hit.item_id for hit in hits]
    assert [h["score"] for h in answer.json()["hits"]] == pytest.approx(
        [hit.score for hit in hits], abs=1e-5
    )
    assert answer.json()["items"] == 24
    again = client.post("/api/search", json={"text": "a dog on grass", "k": 2, "offset": 3})
    assert ids(again) == ids(answer)[3:5]
    reranked = client.post("/api/search", json={"text": "a dog", "k": 5, "rerank": 10})
    assert ids(reranked) == [hit.item_id for hit in engine.search("a dog", 5, rerank=10)]


def test_what_does_not_match_is_left_out_and_said(client: httpx.Client, engine: Engine) -> None:
    found = client.post("/api/search", json={"text": "a dog", "k": 5, "min_match": 0.05}).json()
    hits = engine.search("a dog", 5, min_match=0.05)
    assert [hit["id"] for hit in found["hits"]] == [hit.item_id for hit in hits]
    assert [hit["match"] for hit in found["hits"]] == pytest.approx(
        [hit.match for hit in hits], abs=1e-4
    )
    assert found["best_match"] == pytest.approx(hits.best_match, abs=1e-4)
    none = client.post("/api/search", json={"text": "xylophone tax", "min_match": 1}).json()
    assert none["hits"] == []
    assert 0 <= none["best_match"] < 1
    mixed = client.post("/api/search", json={"id": hits[0].item_id, "min_match": 0.5})
    assert mixed.status_code == 400
    assert "`min_match` matches words" in mixed.json()["error"]["message"]


def test_images_and_mixes_find_what_the_library_finds(
    client: httpx.Client, engine: Engine, image: bytes
) -> None:
    first = next(iter(engine)).id
    sent = client.post("/api/search", files={"image": ("a.jpg", image)}, data={"k": "4"})
    coded = base64.b64encode(image).decode()
    assert ids(sent)[0] == first
    assert ids(client.post("/api/search", json={"image": coded, "k": 4})) == ids(sent)
    assert ids(client.post("/api/search", json={"id": first, "k": 4})) == ids(sent)
    mix = [{"text": "a dog"}, {"text": "snow", "weight": -0.5}]
    expected = [hit.item_id for hit in engine.search({"a dog": 1, "snow": -0.5}, 6)]
    assert ids(client.post("/api/search", json={"mix": mix, "k": 6})) == expected
    like = client.get(f"/api/similar/{first}", params={"k": 3})
    assert ids(like) == [hit.item_id for hit in engine.similar(first, 3)]


def test_filters_find_what_the_library_finds(client: httpx.Client, engine: Engine) -> None:
    where = "subjects contains 'dog' and ground = 'grass'"
    expected = [hit.item_id for hit in engine.search("a dog", 24, where=where)]
    assert 0 < len(expected) < 12
    asked = {"text": "a dog", "k": 24, "where": where}
    assert ids(client.post("/api/search", json=asked)) == expected
    reranked = client.post("/api/search", json={**asked, "rerank": 24})
    hits = engine.search("a dog", 24, rerank=24, where=where)
    assert ids(reranked) == [hit.item_id for hit in hits]
    like = client.get(f"/api/similar/{expected[0]}", params={"k": 5, "where": where})
    hits = engine.similar(expected[0], 5, where)
    assert 0 < len(ids(like)) == len(hits)
    assert ids(like) == [hit.item_id for hit in hits]
    nothing = client.post("/api/search", json={**asked, "where": "subjects contains 'zebu'"})
    assert ids(nothing) == []
    assert "subjects contains 'zebu' holds for none" in nothing.json()["note"]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nose = 1", "no column 'nose'; known: id, source"),
        ("width > 'x'", "column width is integer"),
        ("id = read_text('/etc/passwd')", "may not call read_text"),
        ("1 = 1; drop table items", "more than a condition"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(client: httpx.Client, where: str, said: str) -> None:
    answers = [
        client.post("/api/search", json={"text": "a dog", "where": where}),
        client.get("/api/similar/scene-7-000000", params={"where": where}),
    ]
    for answer in answers:
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert said in error["message"]
        assert set(error) == {"code", "message", "hint", "request_id"}


def test_captions_of_several_images_and_one_that_is_broken(
    client: httpx.Client, engine: Engine, image: bytes
) -> None:
    first = next(iter(engine)).id
    files = [("images", ("a.jpg", image)), ("images", ("b.jpg", b"no picture"))]
    answer = client.post("/api/caption", files=files, data={"ids": [first], "n": "2"}).json()
    sent, broken, stored = answer["images"]
    assert sent["captions"] == stored["captions"] == engine.caption(image, 2)
    assert (sent["image"], broken["captions"]) == ("a.jpg", [])
    assert "not a picture" in broken["error"]
    results = client.post("/api/caption", files=files, data={"format": "coco"}).json()
    assert all(set(row) == {"image_id", "caption"} and row["caption"] for row in results)
    tree = ElementTree.fromstring(
        client.post("/api/caption", files=files, data={"format": "xml"}).text
    )
    told = [(image.get("name"), image.findtext("caption")) for image in tree]
    assert [row for row in told if row[1]] == [(r["image_id"], r["caption"]) for r in results]
    assert len(told) == len(files)
    table = client.post("/api/caption", files=files, data={"format": "csv"})
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert [row["image"] for row in rows] == ["a.jpg", "b.jpg"]
    assert rows[0]["caption"] == engine.caption(image)[0]
    drawn = {"ids": [first], "temperature": 1.5, "seed": 3, "length": 20}
    one, two = (client.post("/api/caption", json=drawn).json()["images"] for _ in range(2))
    assert one == two
    assert one != client.post("/api/caption", json={**drawn, "seed": 4}).json()["images"]


def test_matching_tells_true_sentences_from_false(client: httpx.Client, engine: Engine) -> None:
    entry = next(iter(engine))
    texts = [entry.captions[-1].text, "zzz qqq", "a submarine full of accountants"]
    answer = client.post("/api/match", json={"id": entry.id, "texts": texts})
    true, *false = answer.json()["probabilities"]
    assert true > 0.5 > max(false)


def test_each_word_of_a_text_has_a_map_of_where_the_model_looked(
    client: httpx.Client, engine: Engine
) -> None:
    asked = {"text": "A dog on grass!", "id": next(iter(engine)).id}
    answer = client.post("/api/explain", json=asked).json()
    assert [word["word"] for word in answer["words"]] == ["a", "dog", "on", "grass"]
    match = client.post("/api/match", json={"id": asked["id"], "texts": [asked["text"]]}).json()
    assert answer["probability"] == pytest.approx(match["probabilities"][0], abs=1e-4)
    for word in answer["words"]:
        kind, _, coded = word["map"].partition(",")
        with Image.open(io.BytesIO(base64.b64decode(coded))) as shade:
            assert (kind, shade.mode) == ("data:image/png;base64", "LA")
            dark = np.asarray(shade)[..., 1]
            assert dark.min() == 0 < dark.max()
    whole = client.post("/api/explain", json={**asked, "format": "png"})
    with Image.open(io.BytesIO(whole.content)) as sheet:
        assert (whole.headers["content-type"], sheet.format) == ("image/png", "PNG")


def test_embeddings_in_the_form_of_openai(
    client: httpx.Client, engine: Engine, image: bytes
) -> None:
    picture = "data:image/jpeg;base64," + base64.b64encode(image).decode()
    asked = {"input": ["a dog on grass", picture], "model": "any"}
    answer = client.post("/v1/embeddings", json=asked).json()
    assert [row["index"] for row in answer["data"]] == [0, 1]
    expected = engine.encode(["a dog on grass"])[0]
    np.testing.assert_allclose(answer["data"][0]["embedding"], expected, atol=1e-5)
    coded = client.post("/v1/embeddings", json={**asked, "encoding_format": "base64"}).json()
    data = base64.b64decode(coded["data"][0]["embedding"])
    np.testing.assert_allclose(struct.unpack(f"<{len(expected)}f", data), expected, atol=1e-5)
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_questions_that_come_together_are_answered_as_if_alone(
    client: httpx.Client, engine: Engine
) -> None:
    words = [f"a {colour} {kind}" for colour in ("red", "white", "blue") for kind in ("dog", "car")]
    found: dict[str, list[str]] = {}

    def ask(text: str) -> None:
        with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as own:
            found[text] = ids(own.post("/api/search", json={"text": text, "k": 3}))

    threads = [threading.Thread(target=ask, args=(text,)) for text in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {text: [hit.item_id for hit in engine.search(text, 3)] for text in words}


def test_it_says_how_it_is(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    facts = client.get("/api/store").json()
    assert (facts["items"], facts["index"], facts["recall_at_10"]) == (24, "flat-fp16", 1.0)
    figures = client.get("/metrics").text
    assert 'vlre_requests_total{method="GET",route="/api/store",status="200"}' in figures
    assert "vlre_items 24.0" in figures
    api = client.get("/openapi.json").json()
    assert {"/api/search", "/api/caption", "/api/match", "/v1/embeddings"} <= set(api["paths"])
    for content in api["paths"]["/api/search"]["post"]["requestBody"]["content"].values():
        assert content["schema"]["properties"]["k"]["maximum"] == 1000
    assert "MixPart" in api["components"]["schemas"]


def test_errors_have_one_form(client: httpx.Client, engine: Engine) -> None:
    first = next(iter(engine)).id
    for path, body, status, code in [
        ("/api/search", {"text": "a", "k": 0}, 422, "invalid"),
        ("/api/search", {}, 422, "invalid"),
        ("/api/search", {"id": "../../etc/passwd"}, 404, "not_found"),
        ("/api/search", {"image": base64.b64encode(b"GIF89a").decode()}, 400, "bad_image"),
        ("/api/search", {"mix": [{"text": "snow", "weight": -1}]}, 400, "bad_request"),
        ("/api/caption", {"ids": [first], "temperature": 1, "beams": 2}, 400, "bad_request"),
        ("/api/match", {"id": first, "texts": []}, 422, "invalid"),
        ("/v1/embeddings", {"input": []}, 422, "invalid"),
        ("/v1/embeddings", {"input": "a", "dimensions": 3}, 400, "bad_request"),
    ]:
        answer = client.post(path, json=body, headers={"X-Request-ID": "mine-1"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code), (path, body, answer.text)
        assert error["message"]
        assert error["request_id"] == answer.headers["x-request-id"] == "mine-1"
    for body, where, fields in [
        (
            {"query": "a"},
            "query",
            "`text`, `image`, `id`, `mix`, `k`, `offset`, `rerank`, `min_match`, `where`",
        ),
        ({"mix": [{"word": "a"}]}, "mix.0.word", "`text`, `image`, `id`, `weight`"),
    ]:
        error = client.post("/api/search", json=body).json()["error"]
        assert error["code"] == "invalid"
        said = f"`{where}`: there is no such field; there are {fields}"
        assert error["message"].split("; `")[0] == said
    assert client.get("/nowhere").json()["error"]["code"] == "not_found"
    assert client.get("/api/search").status_code == 405


def test_the_command_ends_at_once_where_store_or_index_are_wrong(store: Path) -> None:
    for wrong, said in [
        (["--index", "nowhere"], "Error: no index at nowhere"),
        (["--split", "zzz"], "Error: no item has split 'zzz'"),
        (["--rate", "-1"], "Error: --rate is -1.0, must be a number from 0 on; 0 is no limit"),
        (["--port", "99999"], "Error: --port is 99999, must be 0 to 65535"),
    ]:
        found = CliRunner().invoke(main, ["serve", "--store", str(store), *wrong])
        assert found.exit_code in (1, 2), found.output
        assert found.stderr.startswith(said), found.stderr


def test_what_encode_adds_is_found_and_nothing_is_lost(tmp_path: Path) -> None:
    store = make_store(tmp_path, 8)
    answers: list[int] = []
    done = threading.Event()

    with served(store, reload_s=0.1) as client:

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as own:
                while not done.is_set():
                    answers.append(own.post("/api/search", json={"text": "a dog"}).status_code)

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        encode("scenes:4?seed=8", store, encoder=open_encoder("vlre-tiny"), options=ALL)
        until = time.monotonic() + PATIENCE_S
        while client.post("/api/search", json={"text": "a"}).json()["items"] < 12:
            assert time.monotonic() < until, "the new items were never found"
            time.sleep(0.02)
        while len(answers) <= 5:
            time.sleep(0.02)
        done.set()
        for asker in askers:
            asker.join()
        assert client.get("/api/store").json()["reloads"] >= 1
    assert set(answers) == {200}
    assert len(answers) > 5


def test_images_are_added_where_that_is_allowed(tmp_path: Path, client: httpx.Client) -> None:
    sent = [("images", ("a.jpg", jpeg(5))), ("images", ("b.jpg", jpeg(6)))]
    refused = client.post("/api/items", files=sent).json()["error"]
    assert refused["code"] == "not_allowed"
    with served(make_store(tmp_path, 4), allow_adding=True) as own:
        said = {"captions": ["some noise", "more of it"]}
        answer = own.post("/api/items", files=sent, data=said).json()
        assert answer == {"added": 2, "known": 0, "items": 6}
        hit = own.post("/api/search", files={"image": ("a.jpg", jpeg(5))}).json()["hits"][0]
        assert (hit["captions"], round(hit["score"], 3)) == (["some noise"], 1)
        assert own.get(hit["thumbnail"]).headers["content-type"] == "image/jpeg"
        again = own.post("/api/items", files=[*sent[:1], ("images", ("c.jpg", b"none"))])
        assert again.json()["error"]["code"] == "bad_image"
        assert own.post("/api/items", files=sent[:1]).json() == {"added": 0, "known": 1, "items": 6}


def test_what_was_asked_before_the_start_and_before_the_end_is_answered(store: Path) -> None:
    found: list[httpx.Response] = []
    engine = Engine(store=store, index=store.with_name("index"))
    asked = {"ids": [entry.id for entry in engine][:12], "length": 40}
    with httpx.Client(timeout=PATIENCE_S) as client:
        with running(engine, ServeSettings(port=0)) as address:
            client.base_url = httpx.URL(address)
            first = client.post("/api/search", json={"text": "a dog"})  # while the model is loaded
            assert first.status_code == 200, first.text
            sent = threading.Event()

            def trace(event: str, _: object) -> None:
                if event.endswith("send_request_body.complete"):
                    sent.set()

            def ask() -> None:
                more = {"trace": trace}
                found.append(client.post("/api/caption", json=asked, extensions=more))

            post = threading.Thread(target=ask)
            post.start()
            assert sent.wait(PATIENCE_S)
            httpx.get(f"{address}/healthz", timeout=PATIENCE_S)  # it has read what came before
        post.join()
    assert found[0].status_code == 200, found[0].text
    assert len(found[0].json()["images"]) == 12
