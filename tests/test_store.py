"""What a store refuses: poisoned rows, other forms, other encoders, other things' directories."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval_engine.errors import (
    FingerprintMismatch,
    ShapeError,
    StoreError,
    StoreNotFound,
    UsageError,
)
from retrieval_engine.records import Feature, Item, Modality
from retrieval_engine.store import StoreWriter, open_store
from retrieval_engine.testing.store_data import (
    FEATURES,
    IMAGE_FEATURES,
    ITC,
    KEYS,
    ONLY_ITC,
    RETRAINED,
    RETRAINED_CAPTION_FEATURES,
    SOURCE,
    SPEC,
    pictures,
    rows,
    write,
)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 70000.0])
def test_refuses_what_is_not_finite_and_names_the_key(tmp_path: Path, poison: float) -> None:
    block = np.ones((5, 1, 4), np.float32)
    block[3, 0, 2] = poison  # 70000 is infinity in float16
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer:
        part = writer.part()
        with pytest.raises(StoreError, match=f"{KEYS[3]} holds NaN or infinity"):
            part.add(Modality.IMAGES, KEYS[:5], {"itc": block})
        part.add(Modality.IMAGES, KEYS[:1], {"itc": block[:1]})
        part.commit()
    assert open_store(tmp_path / "s").count(Modality.IMAGES) == 1


def test_refuses_zero_vectors_one_by_one(tmp_path: Path) -> None:
    itc = replace(ITC, shape=(2, 4))
    pooled = Feature(name="pooled", shape=(2, 4), dtype="float32", fingerprint="f")
    features = {Modality.IMAGES: [itc, pooled]}
    block = np.ones((3, 2, 4), np.float32)
    half = block.copy()
    half[1, 0] = -0.0
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=features) as writer:
        part = writer.part()
        # Every vector of `itc` is compared alone; `pooled` is one vector, whatever its shape.
        with pytest.raises(StoreError, match=f"itc of image {KEYS[1]} holds a zero vector"):
            part.add(Modality.IMAGES, KEYS[:3], {"itc": half, "pooled": block})
        part.add(Modality.IMAGES, KEYS[:3], {"itc": block, "pooled": half})
        half[1] = 0
        with pytest.raises(StoreError, match=f"pooled of image {KEYS[1]} holds a zero vector"):
            part.add(Modality.IMAGES, KEYS[:3], {"itc": block, "pooled": half})


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"itc": np.ones((3, 4), np.float16)},
        {"itc": np.ones((2, 1, 4), np.float16)},
        {"itc": np.ones((3, 1, 4), np.int32)},
        {"itc": np.ones((3, 1, 4), np.float16), "pooled": np.ones((3, 4), np.float16)},
    ],
    ids=["none", "shape", "count", "dtype", "undeclared"],
)
def test_refuses_other_forms_than_declared(
    tmp_path: Path, arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float16]]]
) -> None:
    with (
        StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer,
        pytest.raises(ShapeError, match="declared"),
    ):
        writer.part().add(Modality.IMAGES, KEYS[:3], arrays)


@pytest.mark.parametrize("key", ["", "ab", "g" * 64, " " + "0" * 63, "0" * 65])
def test_refuses_what_is_no_sha256(tmp_path: Path, key: str) -> None:
    with (
        StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer,
        pytest.raises(StoreError, match="key"),
    ):
        writer.part().add(Modality.IMAGES, [key], {"itc": np.ones((1, 1, 4), np.float16)})


def test_refuses_a_feature_called_like_the_key_column(tmp_path: Path) -> None:
    features = {Modality.IMAGES: [replace(ITC, name="key")]}
    with pytest.raises(UsageError, match="'key'"):
        StoreWriter.open(tmp_path / "s", spec=SPEC, features=features)


@pytest.mark.parametrize("broken", ["\udcff.jpg", float("nan")])
def test_refuses_items_that_cannot_be_written_down(tmp_path: Path, broken: str | float) -> None:
    item = Item(id="a", uri="/a", meta={"x": broken})
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer:
        assert not writer.unchanged(item, SOURCE)
        with pytest.raises(StoreError, match="item 'a' of folder:/pictures cannot be stored"):
            writer.part().add_items(SOURCE, [(item, KEYS[0])])


def test_does_not_move_into_a_directory_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=r"not empty: it holds holiday\.jpg"):
            StoreWriter.open(tmp_path, spec=SPEC, features=ONLY_ITC, overwrite=overwrite)
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_path_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="no store at"):
        open_store(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot write a store"):
        StoreWriter.open(tmp_path / "file" / "s", spec=SPEC, features=ONLY_ITC)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", pictures(1).items)
    for name in ("store.json", "manifest.json"):
        file = tmp_path / "s" / name
        before = file.read_text()
        file.write_text(json.dumps({**json.loads(before), "format_version": 2}))
        with pytest.raises(StoreError, match=f"{name} has format version 2, this vlre reads 1"):
            open_store(tmp_path / "s")
        file.write_text(before)


def test_another_encoder_is_refused_with_both_named(tmp_path: Path) -> None:
    write(tmp_path / "s", pictures(3).items)
    with pytest.raises(FingerprintMismatch) as caught:
        StoreWriter.open(tmp_path / "s", spec=RETRAINED, features=FEATURES)
    assert SPEC.fingerprint[:12] in caught.value.message
    assert RETRAINED.fingerprint[:12] in caught.value.message
    assert "`EncodeOptions(overwrite=True)`" in caught.value.hint


def test_a_feature_of_other_weights_is_refused_under_the_same_spec(tmp_path: Path) -> None:
    write(tmp_path / "s", pictures(3).items)
    other = {**FEATURES, Modality.CAPTIONS: RETRAINED_CAPTION_FEATURES}
    with pytest.raises(FingerprintMismatch, match="itc in"):
        StoreWriter.open(tmp_path / "s", spec=SPEC, features=other)


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", pictures(3).items)
    finer = {Modality.IMAGES: [replace(IMAGE_FEATURES[0], dtype="float32")]}
    with pytest.raises(ShapeError, match=r"keeps itc as float16\[2, 8\], not float32\[2, 8\]"):
        StoreWriter.open(tmp_path / "s", spec=SPEC, features=finer)


def test_adopting_an_encoder_makes_only_changed_features_stale(tmp_path: Path) -> None:
    path, content = tmp_path / "s", pictures(12)
    write(path, content.items)
    between = {**FEATURES, Modality.CAPTIONS: RETRAINED_CAPTION_FEATURES}
    with StoreWriter.open(path, spec=RETRAINED, features=between, adopt_spec=True) as writer:
        store = open_store(path)
        assert store.fingerprint == RETRAINED.fingerprint
        assert store.count(Modality.IMAGES) == 12
        assert store.count(Modality.CAPTIONS) == 0
        gallery = store.gallery()
        assert len(gallery) == 12
        assert (gallery.caption_rows == -1).all()
        part = writer.part()
        keys = sorted({caption.key for caption in content.captions})
        part.add(Modality.CAPTIONS, keys, rows(RETRAINED_CAPTION_FEATURES, keys))
        part.commit()
        assert all(writer.unchanged(item, SOURCE) for item in content.items)
    found = open_store(path).gallery().captions("itc", np.float16)
    texts = [caption.key for caption in content.captions]
    np.testing.assert_array_equal(found, rows(RETRAINED_CAPTION_FEATURES, texts)["itc"])
