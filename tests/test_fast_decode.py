"""`--fast-decode`: large JPEGs at a fraction of their size, in a store of its own, and nothing else."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from retrieval_engine import open_encoder
from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.loaded import ImagesRequest, states_notes
from retrieval_engine.cli import main
from retrieval_engine.encoding import EncodeOptions, encode
from retrieval_engine.models import decodes_fast, reopen_encoder
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.captioner import open_tower
from retrieval_engine.models.learner import Task, open_learner
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.models.text_tower import reopen_for_texts
from retrieval_engine.records import Modality
from retrieval_engine.search import Searcher
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import open_store
from tests import tiny
from tests.test_int8 import SAVERS


def picture(size: tuple[int, int], kind: str = "JPEG", seed: int = 0) -> bytes:
    """Smooth noise, as a file."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(data, kind)
    return data.getvalue()


def seen(look: ImagePreprocessor, data: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """The pixels a model gets of a file."""
    return look.pixels(decode(data, least_side=look.least_side))


@pytest.mark.parametrize("family", SAVERS)
def test_only_large_jpegs_and_the_fingerprint_change(family: str, tmp_path: Path) -> None:
    model = str(SAVERS[family](tmp_path / "model"))
    exact = open_encoder(model, device="cpu", dtype="float32")
    fast = open_encoder(model, device="cpu", dtype="float32", fast_decode=True)
    side = exact.preprocessor.image_size
    assert (exact.preprocessor.least_side, fast.preprocessor.least_side) == (0, side)
    for kind, size in (("PNG", (20 * side, 15 * side)), ("JPEG", (3 * side, 2 * side - 1))):
        data = picture(size, kind)
        np.testing.assert_array_equal(seen(fast.preprocessor, data), seen(exact.preprocessor, data))
    for size in ((20 * side + 3, 15 * side), (2 * side + 1, 9 * side), (2 * side, 2 * side)):
        data = picture(size)
        assert min(decode(data, least_side=side).size) >= side
        a, b = (seen(e.preprocessor, data).astype(int) for e in (fast, exact))
        assert a.shape == b.shape
        assert 0 < np.abs(a - b).mean() < 12
    assert fast.spec == replace(exact.spec, preprocessing=f"{exact.spec.preprocessing}+draft")
    assert fast.spec.fingerprint != exact.spec.fingerprint
    assert fast.features(Modality.IMAGES)["itc"] != exact.features(Modality.IMAGES)["itc"]
    assert fast.features(Modality.CAPTIONS) == exact.features(Modality.CAPTIONS)
    for again in (reopen_encoder(fast.spec), reopen_for_texts(fast.spec)):
        assert again.spec.fingerprint == fast.spec.fingerprint
        assert again.preprocessor == fast.preprocessor
    assert not decodes_fast(reopen_encoder(exact.spec).spec)


def test_a_model_that_always_decodes_so_is_the_same(tmp_path: Path) -> None:
    model = tiny.save_blip(tmp_path / "model")
    (model / "preprocessor_config.json").write_text('{"decode": "draft"}')
    plain = open_encoder(str(model), dtype="float32")
    assert plain.spec == open_encoder(str(model), dtype="float32", fast_decode=True).spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs and a model, beside which a store will be."""
    (tmp_path / "photos").mkdir()
    for seed in (1, 2):
        (tmp_path / "photos" / f"{seed}.jpg").write_bytes(picture((900, 700), seed=seed))
    tiny.save_blip(tmp_path / "model")
    return tmp_path


def encoded(folder: Path, *more: str) -> Result:
    """`vlre encode` of the folder."""
    given = (
        "--model",
        str(folder / "model"),
        "--store",
        str(folder / "store"),
        "--dtype",
        "float32",
    )
    kept = ("--store-dtype", "float32", "--features", "itc,tokens")
    source = () if "--only-stale" in more else (str(folder / "photos"), *kept)
    return CliRunner().invoke(main, ["encode", *source, *given, *more])


def test_a_store_is_all_of_it_or_none(folder: Path) -> None:
    assert encoded(folder, "--fast-decode").exit_code == 0
    refused = encoded(folder)
    assert refused.exit_code == 1
    assert "(with --fast-decode, which is not asked for now) was made under" in refused.stderr
    assert encoded(folder, "--fast-decode").exit_code == 0
    assert encoded(folder, "--only-stale").exit_code == 0
    assert not decodes_fast(open_store(folder / "store").spec)
    refused = encoded(folder, "--fast-decode")
    assert refused.exit_code == 1
    assert "(without --fast-decode, which is asked for now) was made under" in refused.stderr
    assert encoded(folder, "--only-stale", "--fast-decode").exit_code == 0
    assert decodes_fast(open_store(folder / "store").spec)


def test_a_picture_asked_for_is_decoded_as_the_store_s(folder: Path) -> None:
    assert encoded(folder, "--fast-decode").exit_code == 0
    data = (folder / "photos" / "1.jpg").read_bytes()
    other = data[:2] + b"\xff\xfe\x00\x04hi" + data[2:]  # a comment: other bytes, the same pixels
    store = open_store(folder / "store")
    [hit, second] = Searcher(store).search(other, 2)
    assert (hit.item_id, round(hit.score, 5)) == ("1.jpg", 1)
    assert second.score < hit.score
    exact = open_encoder(str(folder / "model"), dtype="float32")
    pixels = seen(exact.preprocessor, data)[None]
    theirs = exact.encode_images(pixels, ["itc"])["itc"][0, 0]
    ours = store.gallery().images("itc")[0, 0]
    assert 0.9 < float(theirs @ ours) < 1 - 1e-6


def test_captions_and_training_see_what_the_store_saw(tmp_path: Path) -> None:
    model = str(tiny.save_blip_captioner(tmp_path / "model"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(picture((900, 700)))
    tower = open_tower(model, dtype="float32", fast_decode=True)
    encode(
        f"folder:{tmp_path / 'photos'}",
        tmp_path / "store",
        encoder=tower,
        options=EncodeOptions(features=("tokens",)),
    )
    store = open_store(tmp_path / "store")
    request = ImagesRequest(store=tmp_path / "store", model=model)
    assert decodes_fast(request.captioner(store).spec)
    assert not decodes_fast(request.captioner(None).spec)
    other = str(tiny.save_blip_captioner(tmp_path / "other"))
    assert not decodes_fast(
        ImagesRequest(store=tmp_path / "store", model=other).captioner(store).spec
    )
    with request.opened_run(store, DecodingOptions()) as run:
        assert states_notes(run, store, model) == []
    checkpoint = replace(resolve(model), fast_decode=True)
    learner = open_learner(checkpoint, Task.CAPTION, with_tower=True, dtype=torch.float32)
    assert learner.preprocessor == tower.preprocessor
