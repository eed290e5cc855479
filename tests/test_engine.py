"""What a stranger tries first: each call works, or explains itself in one line."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retrieval_engine import Engine, FeatureTransformer, Mix
from retrieval_engine.caption import CaptionRequest
from retrieval_engine.errors import SourceError, StoreNotFound, UsageError, VlreError
from retrieval_engine.evaluate import RecallSettings
from retrieval_engine.models import open_encoder
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.sources.image_forms import picture_of
from retrieval_engine.store import open_store
from retrieval_engine.testing.images import jpeg, photo


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in `photos`, encoded into `embeddings`."""
    place = tmp_path_factory.mktemp("stranger")
    (place / "photos").mkdir()
    for number in range(6):
        (place / "photos" / f"{number}.jpg").write_bytes(jpeg(number))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        Engine("photos", device="cpu")
    return place


@pytest.fixture
def engine(place: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.chdir(place)
    return Engine("photos")


def first(hits: Any) -> str:
    name: str = hits[0].item_id
    return name


def test_a_folder_is_encoded_and_searched(engine: Engine) -> None:
    assert (len(engine), (engine.added or engine).images.reused) == (6, 6)  # type: ignore[union-attr]
    hits = engine.search("a dog", 3)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert all(Path(hit.uri).is_file() for hit in hits)
    assert [entry.id for entry in engine] == [f"{i}.jpg" for i in range(6)]
    assert engine["2.jpg"].uri.endswith("photos/2.jpg")
    assert "2.jpg" in engine
    assert "9.jpg" not in engine
    assert engine.vectors().shape == (6, 128)
    assert repr(engine) == "Engine(store='embeddings'): 6 images"


@pytest.mark.parametrize(
    "query",
    [
        "photos/1.jpg",
        Path("photos/1.jpg"),
        jpeg(1),
        lambda: Image.open("photos/1.jpg"),
        lambda: np.asarray(Image.open("photos/1.jpg")),
        lambda: np.asarray(Image.open("photos/1.jpg")).transpose(2, 0, 1) / 255,
        lambda: Engine("photos").encode("photos/1.jpg")[0],
        lambda: Engine("photos").encode([Image.open("photos/1.jpg")])[0],
        lambda: {Path("photos/1.jpg"): 2, "a cat": -0.1},
        lambda: Mix(((Image.open("photos/1.jpg"), 2), ("a dog", 0.1))),
    ],
    ids=["name", "path", "bytes", "PIL", "array", "floats", "vector", "encoded", "dict", "Mix"],
)
def test_a_picture_in_any_form_finds_itself(engine: Engine, query: Any) -> None:
    query = query() if callable(query) else query
    hits = engine.search(query, 2)
    assert first(hits) == "1.jpg"
    assert hits[0].score > 0.9


def test_several_queries_have_several_answers(engine: Engine) -> None:
    both = engine.search(["a dog", Path("photos/4.jpg")], 2)
    assert [len(hits) for hits in both] == [2, 2]
    assert first(both[1]) == "4.jpg"
    rows = engine.search(engine.encode(["a dog", "a car"]), 2)
    assert [h.item_id for h in rows[0]] == [h.item_id for h in engine.search("a dog", 2)]
    assert engine.search([], 2) == []


def test_pages_follow_one_another(engine: Engine) -> None:
    every = engine.search("a dog", 6)
    assert engine.search("a dog", 2, offset=3) == every[3:5]
    assert engine.search("a dog", 2, offset=9) == []


def test_what_is_like_an_item_leaves_it_out(engine: Engine) -> None:
    expected = engine.vectors() @ engine.vectors()[2]
    order = [i for i in np.argsort(-expected).tolist() if i != 2]
    assert [hit.item_id for hit in engine.similar("2.jpg", 3)] == [f"{i}.jpg" for i in order[:3]]


def test_vectors_of_words_and_of_pictures(engine: Engine) -> None:
    stored = engine.vectors()
    images = engine.encode([f"photos/{i}.jpg" for i in range(6)])
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, stored, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(engine.encode("a dog"), axis=1), 1, atol=1e-5)
    assert engine.encode("a dog").shape == (1, 128)
    assert engine.encode(np.zeros((3, 8, 9, 3), np.uint8)).shape == (3, 128)
    assert engine.encode([]).shape == (0, 128)


def test_captions_of_pictures_in_any_form(engine: Engine) -> None:
    [sentence] = engine.caption("1.jpg")
    assert len(sentence.split()) > 2
    three = engine.caption([photo(1), "photos/1.jpg"], n=3)
    assert [len(set(sentences)) for sentences in three] == [3, 3]
    assert three[1][0] == sentence


def test_a_notebook_shows_pictures(engine: Engine) -> None:
    html = engine.search("<b>dog</b>", 2)._repr_html_()
    assert html.count("data:image/jpeg;base64,") == 2
    assert "&lt;b&gt;dog" in html
    assert "<b>dog" not in html


def test_reports_show_themselves_and_make_tables(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    engine = Engine(store=tmp_path / "store")
    one, other = (decode(read_bytes(f"scenes:5/{n}")).resize((320, 240)) for n in range(2))
    small = one.resize((160, 120))
    engine.add([one, small, other], ["a <b>dog</b>", "a dog", "a cat"], ["x", "y", "z"])
    found = engine.duplicates()
    assert found.to_pandas()[["group", "best", "item_id"]].values.tolist() == [
        [1, True, "x"],
        [1, False, "y"],
    ]
    html = found._repr_html_()
    assert html.count("data:image/jpeg;base64,") == 2
    assert "1 group; 1 of 3 pictures is a copy" in html
    recall = engine.evaluate()
    table = recall.to_pandas()
    assert table["direction"].tolist() == ["text_to_image", "image_to_text"]
    low, high = table["R@1 interval"][0]
    assert low <= table["R@1"][0] <= high
    shown = recall._repr_html_()
    assert shown.count("<tr>") == 3
    assert f"<td>{table['R@1'][0]:.1f}</td>" in shown


def test_async_callers_wait_without_blocking(engine: Engine) -> None:
    async def ask() -> Any:
        return await asyncio.gather(engine.asearch("a dog", 2), engine.asearch("a cat", 2))

    assert asyncio.run(ask()) == [engine.search("a dog", 2), engine.search("a cat", 2)]


def rows_of_pandas(place: Path) -> Any:
    pandas = pytest.importorskip("pandas")
    paths = [str(place / "photos" / f"{i}.jpg") for i in range(3)]
    return pandas.DataFrame({"path": paths, "caption": ["x", "y", "z"], "year": [1, 2, 3]})


def rows_of_hugging_face(place: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "caption": datasets.Value("string")}
    columns = {"image": [photo(i) for i in range(3)], "caption": ["x", "y", "z"]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def rows_of_torch(place: Path) -> Any:
    import torch

    class Pairs(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> Any:
            return torch.from_numpy(np.asarray(photo(i)) / 255).permute(2, 0, 1), "xyz"[i]

    return Pairs()


@pytest.mark.parametrize(
    "images",
    [
        rows_of_pandas,
        rows_of_hugging_face,
        rows_of_torch,
        lambda place: ((photo(i), "xyz"[i]) for i in range(3)),
        lambda place: [{"image": jpeg(i), "text": ["xyz"[i]]} for i in range(3)],
    ],
    ids=["pandas", "datasets", "torch", "generator", "mappings"],
)
def test_images_come_from_anywhere(
    images: Callable[[Path], Any], place: Path, tmp_path: Path
) -> None:
    with Engine(store=tmp_path / "store") as engine:
        report = engine.add(images(place))
        assert (report.images.encoded, report.captions.encoded) == (3, 3)
        assert [entry.captions[0].text for entry in engine] == ["x", "y", "z"]
        assert all(Path(entry.uri).is_file() for entry in engine)
        # A JPEG's pixels and the picture's own differ a little.
        scores = [engine.search(jpeg(i), 1)[0].score for i in range(3)]
        assert min(scores) > 0.99


def test_what_is_said_beside_the_images(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    engine = Engine(store=tmp_path / "store")
    assert len(engine) == 0
    assert list(engine) == []
    engine.add([photo(0), np.asarray(photo(1))], ["a", ["b", "c"]], ["one", "two"], [{"n": 1}, {}])
    assert [entry.id for entry in engine] == ["one", "two"]
    assert [[c.text for c in entry.captions] for entry in engine] == [["a"], ["b", "c"]]
    table = engine.to_pandas()
    assert table["id"].tolist() == ["one", "two"]
    assert table["n"].tolist()[0] == 1
    hits = engine.search(photo(0)).to_pandas()
    assert hits["item_id"].tolist()[0] == "one"
    engine.add(photo(2), captions="one picture", ids="three")
    assert engine["three"].captions[0].text == "one picture"
    again = engine.add([photo(0)], ids=["one"], captions=["a"], meta=[{"n": 1}])
    assert (again.images.encoded, len(engine)) == (0, 3)


def test_a_picture_that_cannot_be_read_costs_nobody_else(tmp_path: Path) -> None:
    engine = Engine(store=tmp_path / "store")
    report = engine.add([photo(0), b"no picture", photo(1)])
    assert (report.images.encoded, report.images.failed) == (2, 1)
    assert len(engine) == 2


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda e: Engine("nowhere"), UsageError, "neither a folder of pictures nor a store"),
        (lambda e: Engine(store="new").search("a dog"), StoreNotFound, "no store at new"),
        (lambda e: e.search(5), UsageError, "int is no query"),
        (lambda e: e.search(None), UsageError, "NoneType is no query"),
        (lambda e: e.search("  "), UsageError, "query 1 is empty"),
        (lambda e: e.search("a dog", 0), UsageError, "`k` is 0"),
        (lambda e: e.search("a dog", offset=-1), UsageError, "`offset` is -1"),
        (lambda e: e.search("beach.jpg"), SourceError, "cannot read beach.jpg"),
        (lambda e: e.search({"a cat": -1}), UsageError, "only what not to find"),
        (lambda e: e.search({"a cat": 0}), UsageError, "the weight of 'a cat' is 0"),
        (lambda e: e.search(np.zeros(7)), VlreError, "NaN, infinity or only zeros"),
        (lambda e: e.search(np.ones(7)), VlreError, "the query has 7 dimensions, the images 128"),
        (lambda e: e.search(jpeg(1), rerank=20), UsageError, "`rerank` matches words"),
        (lambda e: e.add(None), UsageError, "NoneType is no image"),
        (lambda e: e.add("nowhere.jpg"), SourceError, "nowhere.jpg: No such file"),
        (lambda e: e.add([photo(1)], captions=["a", "b"]), UsageError, "more `captions` than"),
        (lambda e: e.add([photo(1), photo(2)], ids=["a"]), UsageError, "only 1 `ids`"),
        (lambda e: e.add([photo(1), photo(2)], ids=["a", "a"]), UsageError, "two images have the"),
        (lambda e: e.add({"train": []}), UsageError, "a mapping of train is not images"),
        (lambda e: e.add([{"label": 3}]), UsageError, "row 0 has no image; it has: label"),
        (lambda e: e.add(np.full((8, 8, 3), 3.0)), SourceError, "holds 3 to 3; 0 to 1 is needed"),
        (lambda e: e.add("photos", captions=["a"]), UsageError, "a source says itself"),
        (lambda e: e.encode(["a dog", photo(1)]), UsageError, "'a dog' is words"),
        (lambda e: e.encode("a dog", "colour"), UsageError, "emits no colour"),
        (lambda e: e.caption(photo(1), n=0), UsageError, "`n` is 0"),
        (lambda e: e.similar("9.jpg"), KeyError, "no item has the id '9.jpg'"),
        (lambda e: e.vectors("tokens"), VlreError, "has no tokens"),
    ],
)
def test_what_cannot_be_meant_is_explained_in_a_line(
    engine: Engine, call: Callable[[Engine], Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as raised:
        call(engine)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_captions_are_those_of_the_source_that_is_searched(tmp_path: Path) -> None:
    store = tmp_path / "store"
    Engine("scenes:3?seed=2", store=store, model="vlre-tiny", device="cpu")
    engine = Engine("scenes:2?seed=1", store=store, model="vlre-tiny", device="cpu")
    found = engine.search(photo(1), 99, captions=True)
    assert {hit.source for hit in found} == {engine["scene-1-000000"].source}
    assert len(found) == sum(len(entry.captions) for entry in engine)
    assert len(engine.searcher().search(photo(1), 99)) == len(engine) == 2
    every = Engine(store=store, model="vlre-tiny", device="cpu")
    assert len(every.search(photo(1), 99, captions=True)) > len(found)


def test_a_folder_is_searched_alone_and_what_is_added_with_it(
    engine: Engine, tmp_path: Path
) -> None:
    whole = Engine(store="embeddings")
    whole.add(photo(30), ids="other")
    try:
        assert (len(engine), len(whole)) == (6, 7)
        assert "other" not in {hit.item_id for hit in engine.search(photo(30), 9)}
        assert first(whole.search(photo(30), 1)) == "other"
        engine.add(photo(31), ids="mine")
        assert first(engine.search(photo(31), 1)) == "mine"
    finally:
        from retrieval_engine.store import forget_source

        forget_source("embeddings", "added")


def test_arrays_become_the_pictures_that_they_are() -> None:
    pixels = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)
    for array in (pixels, pixels.transpose(2, 0, 1), pixels / 255, pixels.astype(np.int64)):
        np.testing.assert_array_equal(np.asarray(picture_of(array)), pixels)
    assert picture_of(pixels[..., 0]).mode == "L"
    assert picture_of(pixels[..., :1]).size == (5, 2)
    assert np.asarray(picture_of(pixels[..., 0] > 3)).max() == 255


def test_features_are_a_step_of_a_pipeline(place: Path) -> None:
    step = FeatureTransformer(model="vlre-tiny", feature="itc", device="cpu")
    assert step.get_params()["feature"] == "itc"
    pictures = [photo(0), photo(1), place / "photos" / "0.jpg"]
    found = step.fit_transform(pictures, [0, 1, 0])
    assert found.shape == (3, 128)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, step.transform(pictures))
    again = FeatureTransformer(**step.get_params())
    assert again.transform(["a dog", "a cat"]).shape == (2, 128)
    assert step.set_params(feature="pooled").fit().transform(pictures).ndim == 2
    with pytest.raises(UsageError, match="no parameter 'colour'"):
        step.set_params(colour="red")
    with pytest.raises(UsageError, match="`side` is 'left'"):
        step.set_params(side="left").fit()


def test_scikit_learn_takes_it_as_its_own(place: Path) -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pictures = [place / "photos" / f"{i}.jpg" for i in range(6)]
    line = make_pipeline(FeatureTransformer(model="vlre-tiny"), LogisticRegression())
    assert clone(line).fit(pictures, [0, 1] * 3).predict(pictures).shape == (6,)


def test_an_open_encoder_is_a_model_and_whole_sources_are_captioned(tmp_path: Path) -> None:
    encoder = open_encoder("vlre-tiny", device="cpu", dtype="bfloat16")
    with Engine(store=tmp_path / "store", model=encoder) as engine:
        engine.add("scenes:3?seed=4")
        assert open_store(tmp_path / "store").spec.dtype == "bfloat16"
        assert engine.evaluate(settings=RecallSettings(ks=(2,))).report.n_images == 3
        job = engine.caption_all(CaptionRequest(model="vlre-tiny", out=tmp_path / "said.jsonl"))
        assert [row["image"] for row in job.run()] == [entry.id for entry in engine]
        again = engine.caption_all(job.request)
        assert list(again.run()) == []
        assert (again.captioned, again.skipped) == (0, 3)
