"""The engine on tiny real models: BLIP, BLIP-2, with an index, without, and out of step."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from retrieval_engine import build_index, open_encoder, open_index, open_store
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.errors import (
    DecodeError,
    FeatureMissing,
    FingerprintMismatch,
    IndexFailure,
    SourceError,
    StoreNotFound,
    UsageError,
)
from retrieval_engine.models import Encoder
from retrieval_engine.records import Modality
from retrieval_engine.search import Searcher, open_searcher
from retrieval_engine.store import Store
from retrieval_engine.testing.images import encoded, jpeg, photo
from retrieval_engine.testing.vector_store import clustered, write_store
from tests import tiny, tiny_blip2

SENTENCES = ["a red car on the street", "two dogs running", "a boat at sunset", "a bird"]


def write_pictures(path: Path, n: int, first: int = 0) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        (path / f"{i:03}.jpg").write_bytes(jpeg(i))
        (path / f"{i:03}.txt").write_text(f"{SENTENCES[i % 4]} {i}\na {i} on the grass\n")
    return path


@pytest.fixture(scope="module", params=["blip", "blip2"])
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def encoder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    save = tiny.save_blip if family == "blip" else tiny_blip2.save_blip2
    path = save(tmp_path_factory.mktemp("model"))
    return open_encoder(str(path), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def root(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures encoded, and an index of them."""
    root = tmp_path_factory.mktemp("search")
    folder = write_pictures(root / "pictures", 40)
    encode(f"folder:{folder}", root / "store", encoder=encoder, options=_options())
    build_index(open_store(root / "store"), root / "index", recipe="flat")
    return root


def _options() -> EncodeOptions:
    return EncodeOptions(features=("itc",), store_dtype="float32", worker_kind="serial")


@pytest.fixture(params=["index", "exact"])
def engine(request: pytest.FixtureRequest, root: Path, encoder: Encoder) -> Searcher:
    index = root / "index" if request.param == "index" else None
    return Searcher(open_store(root / "store"), index, encoder)


def test_words_find_what_the_vectors_say(engine: Searcher, encoder: Encoder) -> None:
    assert engine.store is not None
    gallery = engine.store.gallery()
    text = encoder.encode_texts(["two dogs"], ["itc"])["itc"][0, 0]
    scores = (gallery.images("itc") @ text).max(axis=1)
    hits = engine.search("two dogs", 5)
    best = np.argsort(-scores, kind="stable")[:5]
    assert [h.item_id for h in hits] == [gallery.ids[i] for i in best]
    assert [h.score for h in hits] == pytest.approx(scores[best].tolist(), abs=1e-5)
    assert [h.rank for h in hits] == [1, 2, 3, 4, 5]
    top = hits[0]
    number = int(top.item_id[:3])
    assert top.captions == (f"{SENTENCES[number % 4]} {number}", f"a {number} on the grass")
    assert Path(top.uri).read_bytes() == jpeg(number)
    assert top.source.startswith("folder:")
    assert (top.caption_id, top.caption) == (None, None)


def test_several_sentences_in_one_call_answer_as_each_alone(engine: Searcher) -> None:
    together = engine.search(SENTENCES, 6)
    for text, hits in zip(SENTENCES, together, strict=True):
        alone = engine.search(text, 6)
        assert [h.item_id for h in alone] == [h.item_id for h in hits]
        assert [h.score for h in alone] == pytest.approx([h.score for h in hits], abs=1e-5)


def test_more_hits_than_images_are_all_images_once(engine: Searcher) -> None:
    hits = engine.search("a dog", 99)
    assert len(hits) == 40
    assert len({h.item_id for h in hits}) == 40
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_a_picture_finds_itself_first(engine: Searcher) -> None:
    hits = engine.search(jpeg(17), 3)
    assert hits[0].item_id == "017.jpg"
    assert hits[0].score == pytest.approx(1, abs=1e-4)


def test_a_known_picture_is_not_encoded_again(root: Path) -> None:
    store = open_store(root / "store")
    engine = Searcher(store, root / "index")
    by_path = engine.search(root / "pictures" / "003.jpg", 4)
    by_bytes = engine.search(jpeg(3), 4)
    captions = engine.search(jpeg(3), 4, captions=True)
    assert by_path == by_bytes
    assert len(captions) == 4
    assert engine.opened is None


def test_an_unknown_picture_goes_through_the_model(engine: Searcher, encoder: Encoder) -> None:
    data = encoded(photo(17, size=(64, 48)), "PNG")
    pixels = encoder.preprocessor.pixels(photo(17, size=(64, 48)))
    expected = encoder.encode_images(pixels[None], ["itc"])["itc"][0]
    np.testing.assert_allclose(engine.vectors(data), expected, atol=1e-6)
    assert len(engine.search(data, 7)) == 7


def test_a_picture_finds_the_captions_that_fit_best(engine: Searcher) -> None:
    assert engine.store is not None
    gallery = engine.store.gallery()
    image = engine.vectors(jpeg(8))
    scores = (gallery.captions("itc")[:, 0] @ image.T).max(axis=1)
    best = np.argsort(-scores, kind="stable")[:9]
    hits = engine.search(jpeg(8), 9, captions=True)
    assert [h.caption_id for h in hits] == [gallery.caption_ids[i] for i in best]
    assert [h.caption for h in hits] == [gallery.caption_texts[i] for i in best]
    assert [h.score for h in hits] == pytest.approx(scores[best].tolist(), abs=1e-5)
    owner = gallery.ids[int(gallery.caption_image[best[0]])]
    assert hits[0].item_id == owner
    assert hits[0].caption in hits[0].captions


def test_the_encoder_is_the_one_the_store_names(root: Path, encoder: Encoder) -> None:
    engine = Searcher(open_store(root / "store"), root / "index", device="cpu")
    assert engine.encoder.spec.fingerprint == encoder.spec.fingerprint
    again = Searcher(open_store(root / "store"), root / "index", encoder)
    assert engine.search("a cat", 3) == again.search("a cat", 3)


def test_an_index_alone_answers_words(root: Path, encoder: Encoder) -> None:
    alone = Searcher(None, open_index(root / "index"), encoder)
    whole = Searcher(open_store(root / "store"), root / "index", encoder)
    assert alone.search("a boat", 5) == whole.search("a boat", 5)
    with pytest.raises(UsageError, match="searching captions needs the store"):
        alone.search(jpeg(1), 3, captions=True)
    with pytest.raises(UsageError, match="neither was given"):
        Searcher(None)


def test_another_encoder_is_refused(root: Path, family: str, tmp_path: Path) -> None:
    save = tiny.save_blip if family == "blip" else tiny_blip2.save_blip2
    other = open_encoder(str(save(tmp_path / "other", seed=5)), device="cpu", dtype="float32")
    store = open_store(root / "store")
    with pytest.raises(FingerprintMismatch, match="expected"):
        Searcher(store, root / "index", other)
    with pytest.raises(FingerprintMismatch):
        Searcher(None, root / "index", other)
    encode(f"folder:{root / 'pictures'}", tmp_path / "store", encoder=other, options=_options())
    with pytest.raises(FingerprintMismatch, match="index"):
        Searcher(open_store(tmp_path / "store"), root / "index")


def test_what_cannot_be_asked_is_explained(engine: Searcher, tmp_path: Path) -> None:
    for k in (0, -3):
        with pytest.raises(UsageError, match="at least 1"):
            engine.search("a dog", k)
        with pytest.raises(UsageError, match="at least 1"):
            engine.search(jpeg(1), k)
    with pytest.raises(UsageError, match="query 2 is empty"):
        engine.search(["a dog", "  "])
    with pytest.raises(SourceError, match="No such file"):
        engine.search(tmp_path / "none.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"no picture at all")
    with pytest.raises(DecodeError, match=r"bad\.jpg: not a picture"):
        engine.search(tmp_path / "bad.jpg")
    with pytest.raises(DecodeError, match="the query image: the file is empty"):
        engine.search(b"")


@pytest.fixture
def vectors_store(tmp_path: Path) -> Store:
    return write_store(tmp_path / "store", clustered(60, 16))


def test_without_an_index_it_says_so(vectors_store: Store) -> None:
    engine = Searcher(vectors_store)
    assert engine.notes == (f"no index: comparing with all 60 images of {vectors_store.path}",)


def test_an_index_older_than_its_store_says_how_much(vectors_store: Store, tmp_path: Path) -> None:
    build_index(vectors_store, tmp_path / "index")
    assert Searcher(vectors_store, tmp_path / "index").notes == ()
    newer = write_store(tmp_path / "store", clustered(7, 16, seed=1), first=60)
    engine = Searcher(newer, tmp_path / "index")
    [line] = engine.notes
    assert line.startswith(f"7 items are newer than {tmp_path / 'index'}: compared one by one")
    store, out = str(tmp_path / "store"), str(tmp_path / "index")
    assert f"`update_index(store={store!r}, out={out!r})` brings it up to date" in line
    for number, vectors in ((12, clustered(60, 16)), (60 + 3, clustered(7, 16, seed=1))):
        vector = vectors[number % 60]
        assert engine.search(vector, 1)[0].item_id == f"item-{number}"


def test_an_index_of_another_store_is_refused(vectors_store: Store, tmp_path: Path) -> None:
    build_index(vectors_store, tmp_path / "index")
    other = write_store(tmp_path / "other", clustered(9, 16, seed=2), first=500)
    with pytest.raises(IndexFailure, match=f"built from {vectors_store.path} and holds none"):
        Searcher(other, tmp_path / "index")


def test_items_that_are_gone_are_counted(vectors_store: Store, tmp_path: Path) -> None:
    build_index(vectors_store, tmp_path / "index")
    fewer = write_store(tmp_path / "fewer", clustered(60, 16)[:50])
    searcher = Searcher(fewer, tmp_path / "index")
    [line] = searcher.notes
    assert line.startswith(f"10 items of {tmp_path / 'index'} are gone and left out")
    hits = searcher.search(clustered(60, 16)[55], 60)
    assert sorted(int(hit.item_id[5:]) for hit in hits) == list(range(50))


def test_an_index_of_one_split(tmp_path: Path) -> None:
    splits = ["test" if i < 10 else "train" for i in range(40)]
    store = write_store(tmp_path / "store", clustered(40, 16), splits=splits)
    build_index(store, tmp_path / "index", split="test")
    engine = Searcher(store, tmp_path / "index")
    assert engine.split == "test"
    assert engine.notes == (f"{tmp_path / 'index'} holds split 'test' alone",)
    assert Searcher(store, tmp_path / "index", split="test").notes == ()
    with pytest.raises(IndexFailure, match="holds split 'test', not split 'train'"):
        Searcher(store, tmp_path / "index", split="train")
    assert len(Searcher(store, split="train").catalog) == 30


def test_captions_without_features_are_missing(vectors_store: Store) -> None:
    engine = Searcher(vectors_store)
    assert engine.search(b"item-3", 1)[0].item_id == "item-3"
    with pytest.raises(FeatureMissing, match="no itc of captions"):
        engine.search(b"item-3", 3, captions=True)


def test_opening_from_paths_uses_what_fits(vectors_store: Store, tmp_path: Path) -> None:
    store, index = tmp_path / "store", tmp_path / "index"
    with pytest.raises(StoreNotFound):
        open_searcher(tmp_path / "nothing", default_index=index)
    with pytest.raises(IndexFailure, match="no index at"):
        open_searcher(store, index)
    exact = f"no index: comparing with all 60 images of {store}"
    assert open_searcher(store, default_index=index).notes == (exact,)
    build_index(vectors_store, index)
    assert open_searcher(store, default_index=index).notes == ()
    assert open_searcher(tmp_path / "nothing", index).notes == (
        f"no store at {tmp_path / 'nothing'}: searching {index} alone",
    )
    # A default index over something else is passed over; one that was asked for is an error.
    shutil.rmtree(store)
    write_store(store, clustered(60, 16), weights="w2")
    notes = open_searcher(store, default_index=index).notes
    assert notes[0].startswith(f"{index} is not used: ")
    assert notes[1] == exact
    with pytest.raises(FingerprintMismatch):
        open_searcher(store, index)


def test_an_image_of_several_vectors_knows_its_captions_by_the_best_one(tmp_path: Path) -> None:
    images = clustered(30 * 4, 16).reshape(30, 4, 16)
    captions = [images[i, i % 4][None] for i in range(30)]
    store = write_store(tmp_path / "store", images, captions)
    build_index(store, tmp_path / "index", recipe="flat")
    engine = Searcher(store, tmp_path / "index")
    scores, items = engine.index.search(np.concatenate(captions), 1)
    assert items[:, 0].tolist() == list(range(30))
    np.testing.assert_allclose(scores, 1, atol=1e-5)
    rows = engine.catalog.image_rows(store, items[:, 0])
    np.testing.assert_array_equal(store.read(Modality.IMAGES, "itc", rows), images)
