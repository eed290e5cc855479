"""FORMAT.md is true: a store is read here by that text alone, with plain tools."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from retrieval_engine import encode, open_encoder
from retrieval_engine.records import Modality
from retrieval_engine.store import StoreWriter, open_store
from retrieval_engine.testing.store_data import (
    CAPTION_FEATURES,
    FEATURES,
    IMAGE_FEATURES,
    SOURCE,
    SPEC,
    add,
    key_of,
    pictures,
    rows,
    write,
)


class PlainReader:
    """Written from FORMAT.md; nothing of the package is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = json.loads((path / "store.json").read_text(encoding="utf-8"))
        self.manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        assert self.header["format_version"] == self.manifest["format_version"] == 1

    def files(self, kind: str) -> list[dict[str, Any]]:
        parts = self.manifest["parts"]
        return [file for part in parts for file in part["files"] if file["kind"] == kind]

    def features(self, side: str, name: str) -> dict[str, NDArray[Any]]:
        current = self.header["features"][side][name]
        found: dict[str, NDArray[Any]] = {}
        for file in self.files(side):
            path = self.path / "shards" / file["name"]
            assert path.stat().st_size == file["bytes"]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
            if file["features"].get(name) == current:
                with h5py.File(path, "r", locking=False) as h5:
                    assert h5["key"].shape == (file["rows"],)
                    keys = [key.decode("ascii") for key in h5["key"][:]]
                    found.update(zip(keys, h5[name][:], strict=True))
        return found

    def items(self) -> list[dict[str, Any]]:
        latest: dict[tuple[str, str], dict[str, Any]] = {}
        for file in self.files("items"):
            for row in pq.read_table(self.path / "shards" / file["name"]).to_pylist():
                latest[row["source"], row["id"]] = row
        return [row for row in latest.values() if not row["removed"]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path, items = tmp_path / "s", pictures(14).items
    write(path, items[:10], part_items=4)
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        add(writer, items[8:], version=1)
        writer.remove(SOURCE, [items[2].id])
    return path


def test_plain_tools_find_the_same_features(path: Path) -> None:
    reader, content = PlainReader(path), pictures(14)
    for feature in IMAGE_FEATURES:
        found = reader.features("images", feature.name)
        assert set(found) == set(content.keys)
        for key, old, new in zip(
            content.keys,
            rows(IMAGE_FEATURES, content.keys)[feature.name],
            rows(IMAGE_FEATURES, content.keys, 1)[feature.name],
            strict=True,
        ):
            expected = old if content.keys.index(key) < 8 else new
            np.testing.assert_array_equal(found[key], expected)
            assert found[key].dtype == feature.dtype
    texts = {hashlib.sha256(caption.text.encode()).hexdigest() for caption in content.captions}
    for feature in CAPTION_FEATURES:
        assert set(reader.features("captions", feature.name)) == texts


def test_plain_tools_find_the_same_items(path: Path) -> None:
    plain = PlainReader(path).items()
    ours = open_store(path).items().to_pylist()
    columns = ["source", "id", "uri", "key", "size_bytes", "mtime_ns", "split", "captions", "meta"]
    columns += ["folder", "taken", "camera", "latitude", "longitude", "width", "height", "bytes"]
    assert [{name: row[name] for name in columns} for row in plain] == ours
    assert [row["id"] for row in plain] == [f"{i}.jpg" for i in range(14) if i != 2]
    assert plain[3]["key"] == key_of(pictures(14).items[4])
    assert json.loads(plain[0]["meta"]) == {"number": 0}


def test_shards_are_as_written_down(path: Path) -> None:
    for side, features in FEATURES.items():
        for file in PlainReader(path).files(side):
            with h5py.File(path / "shards" / file["name"], "r") as h5:
                assert set(h5) == {"key", *(feature.name for feature in features)}
                assert h5.attrs["format_version"] == 1
                assert h5.attrs["modality"] == side
                assert h5.attrs["fingerprint"] == SPEC.fingerprint
                assert json.loads(h5.attrs["spec"])["checkpoint"] == "tests"
                assert h5["key"].dtype == "S64"
                for feature in features:
                    assert h5[feature.name].shape == (file["rows"], *feature.shape)
                    assert h5[feature.name].dtype == np.dtype(feature.dtype).newbyteorder("<")
                    assert h5[feature.name].attrs["fingerprint"] == feature.fingerprint
                for dataset in h5.values():
                    assert dataset.fletcher32
                    assert dataset.compression is None
                    assert dataset.external is None


def test_numbers_of_parts_only_grow(path: Path) -> None:
    manifest = PlainReader(path).manifest
    numbers = [part["number"] for part in manifest["parts"]]
    assert numbers == sorted(set(numbers))
    assert manifest["next_part"] > max(numbers)


def test_members_it_does_not_know_are_ignored(path: Path) -> None:
    before = open_store(path).gallery().images("itc")
    for name in ("store.json", "manifest.json"):
        value = json.loads((path / name).read_text())
        value["later"] = {"x": 1}
        del value["checksum"]
        if name == "store.json":
            value["spec"]["later"] = "y"
        (path / name).write_text(json.dumps(value))
    store = open_store(path)
    assert store.spec == SPEC
    np.testing.assert_array_equal(store.gallery().images("itc"), before)


@pytest.mark.parametrize("side", list(Modality))
def test_datasets_opens_the_shards_as_they_are(path: Path, tmp_path: Path, side: Modality) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(str(file) for file in (path / "shards").glob(f"{side}-*.h5"))
    loaded = datasets.load_dataset(
        "hdf5", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    reader = PlainReader(path)
    assert len(loaded) == sum(file["rows"] for file in reader.files(side))
    store = open_store(path)
    loaded = loaded.with_format("numpy")
    keys = [key.decode() for key in loaded["key"]]
    for feature in FEATURES[side]:
        found = dict(zip(keys, loaded[feature.name], strict=True))  # the last of equal keys stays
        expected = store.read(side, feature.name, store.rows(side, list(found)))
        read = np.stack(list(found.values()))
        assert read.shape == expected.shape
        np.testing.assert_array_equal(read.astype(expected.dtype), expected)


def test_a_store_of_the_first_format_opens_and_nothing_is_encoded_again(tmp_path: Path) -> None:
    # Written by vlre 0.1.0 at 8093ee6: `vlre encode "scenes:6?seed=7" --dtype float32 --device cpu`.
    with tarfile.open(Path(__file__).parent / "golden" / "store-format-1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    store = open_store(tmp_path / "embeddings")
    assert store.verify() == []
    assert [len(store.items()), store.count(Modality.CAPTIONS)] == [6, 30]
    encoder = open_encoder("vlre-tiny", device="cpu", dtype="float32")
    assert encoder.spec.fingerprint == store.fingerprint
    for modality in Modality:
        forms = encoder.features(modality)
        for name, stored in store.features(modality).items():
            assert forms[name].fingerprint == stored.fingerprint, name
    report = encode("scenes:6?seed=7", store.path, encoder=encoder)
    assert [report.images.encoded, report.images.reused] == [0, 6]
    assert [report.captions.encoded, report.captions.reused] == [0, 30]
    gallery = store.gallery()
    fresh = encoder.encode_texts(list(gallery.caption_texts), ["itc"])["itc"]
    np.testing.assert_allclose(gallery.captions("itc"), fresh, atol=2e-3)
