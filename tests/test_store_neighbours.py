"""What is not the store's own is never read through, overwritten or deleted."""

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.durable import replace_file, replacing_file
from retrieval_engine.encoding import EncodeOptions, encode
from retrieval_engine.errors import SourceError, StoreDamaged, StoreError, UsageError
from retrieval_engine.heads import Head, HeadConfig, HeadKind
from retrieval_engine.heads.saved import SavedHead, TrainedOn, load_head, save_head
from retrieval_engine.records import Modality
from retrieval_engine.store import StoreWriter, open_store, repair_store
from retrieval_engine.testing.images import jpeg
from retrieval_engine.testing.store_data import FEATURES, SPEC, add, pictures, write
from tests import tiny

TEN = pictures(10).items


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_linked_shards_are_read_but_never_written(tmp_path: Path) -> None:
    store, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    write(store, TEN)
    (store / "shards").rename(elsewhere)
    (elsewhere / "images-00007.h5").write_bytes(b"of another store")
    (elsewhere / "holiday.txt").write_text("precious")
    (store / "shards").symlink_to(elsewhere)
    before = _files(elsewhere)
    assert len(open_store(store).gallery()) == 10
    for attempt in (
        lambda: repair_store(store),
        lambda: StoreWriter.open(store, spec=SPEC, features=FEATURES),
        lambda: StoreWriter.open(store, spec=SPEC, features=FEATURES, overwrite=True),
    ):
        with pytest.raises(StoreError, match="is a link to"):
            attempt()
    assert _files(elsewhere) == before
    assert len(open_store(store).gallery()) == 10


def test_unknown_names_and_folders_are_never_deleted(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write(store, TEN[:5])
    shards = store / "shards"
    (shards / "notes").mkdir()
    (shards / "notes" / "a.txt").write_text("mine")
    (shards / "images-00005.h5").mkdir()  # a folder, whatever its name
    for name in ("images-00009.h5.bak", "holiday.jpg", "download.partial"):
        (shards / name).write_bytes(b"mine")
    (store / "report.json.partial").write_bytes(b"mine")
    (store / "manifest.json.partial").write_bytes(b"left by a dead writer")
    (shards / "captions-00004.h5.0a1b2c3d.partial").write_bytes(b"left by a dead writer")
    (shards / "items-00004.parquet").write_bytes(b"never committed")
    assert repair_store(store).swept == (
        "captions-00004.h5.0a1b2c3d.partial",
        "items-00004.parquet",
        "manifest.json.partial",
    )
    with StoreWriter.open(store, spec=SPEC, features=FEATURES) as writer:
        add(writer, TEN[5:])  # its number is beyond the folder that stands in the way
    assert {"notes", "images-00005.h5", "images-00006.h5"} <= {p.name for p in shards.iterdir()}
    assert (store / "report.json.partial").read_bytes() == b"mine"
    assert open_store(store).verify() == []
    with StoreWriter.open(store, spec=SPEC, features=FEATURES, overwrite=True) as writer:
        add(writer, TEN)
    for name in ("images-00009.h5.bak", "holiday.jpg", "download.partial", "notes/a.txt"):
        assert (shards / name).is_file()


@pytest.mark.parametrize("planted", ["manifest.json.partial", "shards/images-00001.h5.partial"])
def test_planted_links_are_not_followed(tmp_path: Path, planted: str) -> None:
    store, victim = tmp_path / "s", tmp_path / "victim"
    write(store, TEN[:5])
    victim.write_text("precious")
    (store / planted).symlink_to(victim)
    with StoreWriter.open(store, spec=SPEC, features=FEATURES) as writer:
        add(writer, TEN[5:])
    assert victim.read_text() == "precious"
    assert not (store / planted).is_symlink()
    assert len(open_store(store).gallery()) == 10


def test_files_are_replaced_without_following_links(tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out.json"
    victim.write_text("precious")
    for name in ("out.json.partial", "out.json.tmp", ".out.json.partial"):
        (tmp_path / name).symlink_to(victim)
    replace_file(out, b"new")
    assert (out.read_bytes(), victim.read_text()) == (b"new", "precious")

    def fail_halfway() -> None:
        with replacing_file(out) as file:
            file.write(b"half")
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail_halfway()
    assert out.read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 5  # nothing of the half is left


def test_a_head_is_written_beside_a_planted_link(tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "head"
    victim.write_text("precious")
    out.mkdir()
    for name in ("head.json.partial", "head.safetensors.partial", "trained_on.parquet.partial"):
        (out / name).symlink_to(victim)
    head = SavedHead(
        path=out,
        head=Head(
            HeadConfig(kind=HeadKind.LINEAR, feature="pooled", image_width=3, text_width=3, dim=4)
        ),
        encoder="e",
        checkpoint="c",
        inputs=dict.fromkeys(Modality, "i"),
        record={},
    )
    saved = save_head(head, TrainedOn())
    assert load_head(out).weights == saved.weights
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["external link", "soft link", "external bytes", "virtual"])
def test_features_elsewhere_are_refused(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "s", TEN)
    write(tmp_path / "other", TEN)
    manifest = tmp_path / "s" / "manifest.json"
    shard = tmp_path / "s" / "shards" / "images-00000.h5"
    other = tmp_path / "other" / "shards" / "images-00000.h5"
    with h5py.File(shard, "r+") as file:
        values = file["pooled"][:]
        del file["pooled"]
        if kind == "external link":
            file["pooled"] = h5py.ExternalLink(str(other), "/pooled")
        elif kind == "soft link":
            file["hidden"] = values
            file["pooled"] = h5py.SoftLink("/hidden")
        elif kind == "external bytes":
            (tmp_path / "raw").write_bytes(values.tobytes())
            file.create_dataset(
                "pooled", values.shape, values.dtype, external=[(str(tmp_path / "raw"), 0, 10**6)]
            )
        else:
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[:] = h5py.VirtualSource(str(other), "pooled", values.shape)
            file.create_virtual_dataset("pooled", layout)
    value = json.loads(manifest.read_text())
    for entry in value["parts"][0]["files"]:
        if entry["name"] == shard.name:
            entry["bytes"] = shard.stat().st_size
            entry["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    value.pop("checksum", None)
    manifest.write_text(json.dumps(value))
    store = open_store(tmp_path / "s")
    with pytest.raises(StoreDamaged, match="pooled"):
        store.gallery().images("pooled")
    assert np.isfinite(store.gallery().images("itc")).all()


def test_addresses_that_cannot_be_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "cache"))
    run = CliRunner().invoke
    for arguments in (
        ["encode", "scenes:3", "--store", "nothing://bucket/store"],
        ["store", "info", "--store", "nothing://bucket/store"],
        ["search", "a dog", "--store", "s3://key:word@bucket/store"],
    ):
        result = run(main, arguments)
        assert result.exit_code == 2, arguments
        assert "no scheme that fsspec knows" in result.stderr or "password" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_blip(tmp_path_factory.mktemp("blip")))


def test_a_failing_call_leaves_no_empty_store(tmp_path: Path, checkpoint: str) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(1))
    (folder / "captions.jsonl").write_text("{no json\n")
    out = tmp_path / "deep" / "down" / "s"
    with pytest.raises(SourceError):
        encode(f"folder:{folder}", out, encoder=checkpoint)
    assert not (tmp_path / "deep").exists()
    out.mkdir(parents=True)  # the user's own folder stays, as empty as it was
    with pytest.raises(SourceError):
        encode(f"folder:{folder}", out, encoder=checkpoint)
    assert list(out.iterdir()) == []
    (folder / "captions.jsonl").unlink()
    assert encode(f"folder:{folder}", out, encoder=checkpoint).images.encoded == 1
    with pytest.raises(UsageError):
        encode(f"folder:{folder}", out, encoder=checkpoint, options=EncodeOptions(features=("x",)))
    assert len(open_store(out).gallery()) == 1


def test_overwriting_from_a_source_that_fails_keeps_the_store(
    tmp_path: Path, checkpoint: str
) -> None:
    folder, out = tmp_path / "p", tmp_path / "s"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(1))
    encode(f"folder:{folder}", out, encoder=checkpoint)
    (folder / "captions.jsonl").write_text("{no json\n")
    with pytest.raises(SourceError):
        encode(f"folder:{folder}", out, encoder=checkpoint, options=EncodeOptions(overwrite=True))
    assert open_store(out).gallery().ids == ["a.jpg"]


@pytest.mark.parametrize("way", ["../out/b.jpg", "{out}/b.jpg", "link/b.jpg"])
def test_txt_files_stay_inside_the_source(tmp_path: Path, way: str) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for folder in (images, out):
        folder.mkdir()
    (images / "a.jpg").write_bytes(jpeg(1))
    (out / "b.jpg").write_bytes(jpeg(2))
    (images / "link").symlink_to(out)
    names = ["a.jpg", way.format(out=out)]
    annotation = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "caption": "x"} for i in range(2)],
    }
    (images / "c.json").write_text(json.dumps(annotation))
    result = CliRunner().invoke(
        main,
        ["caption", f"coco:{images}/c.json?images={images}", "--beams", "1", "--txt-beside"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (images / "a.txt").is_file()
    assert not (out / "b.txt").exists()
    assert "1 images lie outside the folder of their source" in result.stderr
