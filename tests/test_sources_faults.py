"""One bad item costs one item: it is in the ledger with its reason, and all others are encoded."""

import gzip
import json
import os
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from retrieval_engine import open_encoder, open_source, open_store
from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import encode
from retrieval_engine.errors import SourceError
from retrieval_engine.models import Encoder
from retrieval_engine.sources import read_bytes, read_item, reading
from retrieval_engine.testing.images import jpeg
from tests import tiny
from tests.test_sources import lay_out
from tests.test_sources_webdataset import shard

LOST = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    checkpoint = tiny.save_blip(tmp_path_factory.mktemp("blip"))
    return open_encoder(str(checkpoint), device="cpu", dtype="float32")


@pytest.fixture
def in_time() -> Iterator[None]:
    """Nothing here may wait for a writer that never comes."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 240


def encoded(
    spec: str, folder: Path, encoder: Encoder
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions of the items in a store made of a source, and the reasons of those that failed."""
    encode(spec, folder / "store", encoder=encoder)
    store = open_store(folder / "store")
    assert store.verify() == []
    gallery = store.gallery()
    texts = {
        gallery.ids[i]: [gallery.caption_texts[j] for j in gallery.captions_of(i)]
        for i in range(len(gallery))
    }
    return texts, {failure.item_id: failure.reason for failure in store.failures()}


def test_captions_and_metadata_that_no_utf8_or_json_can_hold(
    tmp_path: Path, encoder: Encoder
) -> None:
    lines = [
        r'{"image": "a.jpg", "caption": "half \ud83d a smile", "by\udc00": "x\ud800"}',
        r'{"image": "b.jpg", "caption": "whole \ud83d\ude00", "score": NaN, "deep": [1e999, {"n": -Infinity}]}',
        r'{"image": "c.jpg", "caption": ["\udc00\udc00"]}',
    ]
    lay_out(tmp_path, {"p/a.jpg": jpeg(0), "p/b.jpg": jpeg(1), "p/c.jpg": jpeg(2)})
    lay_out(tmp_path, {"p/captions.jsonl": "\n".join(lines)})
    source: Any = open_source(f"folder:{tmp_path}/p")
    items = {item.id: item for item in source.items()}

    assert items["a.jpg"].meta == {f"by{LOST}": f"x{LOST}"}
    assert items["b.jpg"].meta == {"score": None, "deep": [None, {"n": None}]}
    assert source.notes == ["3 characters of 2 captions could not be read and are U+FFFD"]
    found, failed = encoded(f"folder:{tmp_path}/p", tmp_path, encoder)
    assert found == {
        "a.jpg": [f"half {LOST} a smile"],
        "b.jpg": ["whole \N{GRINNING FACE}"],
        "c.jpg": [LOST * 2],
    }
    assert failed == {}
    assert open_store(tmp_path / "store").gallery().meta(1)["score"] is None


@pytest.mark.parametrize("bad", ["3", "true", '["fine", 3]', '[["x"]]', '{"text": 4}', "[{}, 0]"])
def test_caption_that_is_no_text_is_its_item_s_failure(
    tmp_path: Path, encoder: Encoder, bad: str
) -> None:
    lay_out(tmp_path, {"p/a.jpg": jpeg(0), "p/b.jpg": jpeg(1)})
    lay_out(tmp_path, {"c.json": f'{{"a.jpg": {bad}, "b.jpg": "good"}}'})

    found, failed = encoded(f"captions:{tmp_path}/c.json?images={tmp_path}/p", tmp_path, encoder)

    assert failed["a.jpg"].startswith("a caption is no text: ")
    assert found == {"b.jpg": ["good"]}


@pytest.mark.parametrize("empty", ["null", "NaN", "[null, null]", "[]", '""', '[{"raw": null}]'])
def test_caption_that_is_not_there_is_none(tmp_path: Path, empty: str) -> None:
    lay_out(tmp_path, {"a.jpg": b"", "captions.jsonl": f'{{"image": "a.jpg", "caption": {empty}}}'})

    (item,) = open_source(f"folder:{tmp_path}").items()

    assert item.captions == ()
    assert item.fault == ""


def test_a_fault_that_was_mended_is_encoded_and_one_that_came_is_told(
    tmp_path: Path, encoder: Encoder
) -> None:
    lay_out(tmp_path, {"p/a.jpg": jpeg(0), "p/captions.jsonl": '{"image":"a.jpg","caption":1}'})
    spec = f"folder:{tmp_path}/p"
    assert encoded(spec, tmp_path, encoder) == ({}, {"a.jpg": "a caption is no text: '1'"})

    lay_out(tmp_path, {"p/captions.jsonl": '{"image":"a.jpg","caption":"1"}'})
    assert encoded(spec, tmp_path, encoder) == ({"a.jpg": ["1"]}, {})

    lay_out(tmp_path, {"p/captions.jsonl": '{"image":"a.jpg","caption":[1]}'})
    report = encode(spec, tmp_path / "store", encoder=encoder)
    assert [f.item_id for f in report.failures] == ["a.jpg"]


def test_coco_annotations_without_caption_or_image(tmp_path: Path, encoder: Encoder) -> None:
    lay_out(tmp_path, {f"p/{name}.jpg": jpeg(n) for n, name in enumerate("abc")})
    images = [
        {"id": "7", "file_name": "a.jpg"},
        {"id": 8, "file_name": "b.jpg"},
        {"id": 9.0, "file_name": "./c.jpg"},
    ]
    annotations = [
        {"id": 1, "image_id": 7, "caption": "of a"},
        {"id": 2, "image_id": "8"},
        {"id": 3, "image_id": 8, "caption": "of b"},
        {"id": 4, "image_id": 9, "caption": "of c"},
        {"id": 5, "caption": "of nobody"},
        {"id": 6, "image_id": 77, "caption": "of no listed image"},
        "no object",
    ]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    spec = f"coco:{tmp_path}/c.json?images={tmp_path}/p"

    found, failed = encoded(spec, tmp_path, encoder)

    assert found == {"a.jpg": ["of a"], "c.jpg": ["of c"]}
    assert list(failed) == ["b.jpg"]
    assert failed["b.jpg"].startswith("annotation 2 has no caption")
    source: Any = open_source(spec)
    assert len(list(source.items())) == 3
    assert source.notes == [
        f"{tmp_path}/c.json: captions of 1 images that it does not list, such as image_id 77",
        f"{tmp_path}/c.json: 2 captions of no image",
    ]


@pytest.mark.usefixtures("in_time")
def test_pipes_devices_folders_and_links_that_a_table_names(
    tmp_path: Path, encoder: Encoder
) -> None:
    folder = tmp_path / "p"
    lay_out(folder, {"good.jpg": jpeg(), "folder.jpg/x": ""})
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "dead.jpg").symlink_to("nowhere.jpg")
    (folder / "self.jpg").symlink_to("self.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket.jpg"))
    names = ["good", "pipe", "zero", "dead", "self", "folder", "socket"]
    lay_out(tmp_path, {"c.csv": "".join(f"{name}.jpg,a {name}\n" for name in names)})

    found, failed = encoded(f"captions:{tmp_path}/c.csv?images={folder}", tmp_path, encoder)

    assert found == {"good.jpg": ["a good"]}
    reasons = {name: reason.rpartition(": ")[2] for name, reason in failed.items()}
    assert reasons == {
        "pipe.jpg": "it is no regular file",
        "zero.jpg": "it is no regular file",
        "folder.jpg": "it is no regular file",
        "dead.jpg": "No such file or directory",
        "self.jpg": "Too many levels of symbolic links",
        "socket.jpg": "No such device or address",
    }


@pytest.mark.usefixtures("in_time")
def test_pipes_and_links_in_a_folder_are_counted(tmp_path: Path) -> None:
    lay_out(tmp_path, {"good.jpg": jpeg(), "folder.jpg/x.png": b""})
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "captions.csv")
    os.mkfifo(tmp_path / "good.txt")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dead.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "out.txt").symlink_to("nowhere.txt")
    source: Any = open_source(f"folder:{tmp_path}")

    items = {item.id: item for item in source.items()}

    assert list(items) == ["folder.jpg/x.png", "good.jpg"]
    assert items["good.jpg"].fault.endswith("good.txt: it is no regular file")
    assert source.notes == ["3 links lead nowhere", "1 pictures are pipes or devices"]


@pytest.mark.usefixtures("in_time")
def test_pipe_as_a_picture_to_ask_with_or_as_a_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")

    with pytest.raises(SourceError, match="no regular file"):
        read_bytes(str(tmp_path / "pipe.tar"))
    with pytest.raises(SourceError, match=r"pipe\.tar"):
        list(open_source(f"webdataset:{tmp_path}/pipe.tar").items())
    with pytest.raises(SourceError, match="is not a file"):
        list(open_source(f"captions:{tmp_path}/pipe.tar").items())


def test_listed_file_that_goes_during_the_run(tmp_path: Path, encoder: Encoder) -> None:
    lay_out(tmp_path, {f"p/{n}.jpg": jpeg(n) for n in range(4)})
    lay_out(tmp_path, {"c.csv": "".join(f"{n}.jpg,number {n}\n" for n in range(4))})
    for kind in (f"captions:{tmp_path}/c.csv?images={tmp_path}/p", f"folder:{tmp_path}/p"):
        lay_out(tmp_path, {"p/2.jpg": jpeg(2)})
        items = iter(open_source(kind).items())
        first = next(items)
        (tmp_path / "p" / "2.jpg").unlink()
        rest = {item.id: item for item in items}

        assert first.id == "0.jpg"
        assert list(rest) == ["1.jpg", "2.jpg", "3.jpg"]
        assert rest["2.jpg"].size_bytes == -1
        with pytest.raises(SourceError, match="No such file"):
            read_item(rest["2.jpg"])


def test_sidecar_that_cannot_be_read_is_its_picture_s_failure(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_engine.sources.kinds.folder.MAX_TEXT", 100)
    lay_out(tmp_path, {"p/a.jpg": jpeg(0), "p/a.txt": "x" * 101, "p/b.jpg": jpeg(1)})
    lay_out(tmp_path, {"p/b.txt": "y" * 100})

    found, failed = encoded(f"folder:{tmp_path}/p", tmp_path, encoder)

    assert found == {"b.jpg": ["y" * 100]}
    assert failed == {"a.jpg": f"cannot read {tmp_path}/p/a.txt: it has more than 100 bytes"}


def test_members_too_large_to_be_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval_engine.sources.kinds.webdataset.MAX_TEXT", 100)
    members: list[tuple[str, bytes | str]] = [
        *(("0.jpg", jpeg()), ("0.txt", "x" * 101), ("1.jpg", jpeg()), ("1.txt", "y"))
    ]
    shard(tmp_path / "x.tar", members)

    first, second = open_source(f"webdataset:{tmp_path}/x.tar").items()

    assert first.fault == "0.txt has 101 bytes; at most 100 are read"
    assert [c.text for c in second.captions] == ["y"]


def test_compressed_table_of_one_endless_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_TEXT", 1 << 20)
    for name in ("a.csv.gz", "a.jsonl.gz", "a.tsv.gz"):
        with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
            for _ in range(64):
                file.write(bytes(1 << 20))
        with pytest.raises(SourceError, match=r":1 has more than 1,048,576 characters"):
            list(open_source(f"captions:{tmp_path}/{name}").items())


def test_json_value_without_end_and_json_nested_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_engine.sources.json_stream.MAX_TEXT", 1 << 20)
    endless, nested = '[{"image": "' + "a" * (5 << 20), "[" * 200_000
    for name, content, complaint in (
        ("a.json", endless, "has more than 1,048,576"),
        ("b.json", nested, "nested too deeply"),
        ("c.jsonl", '{"a":' * 200_000, "nested too deeply"),
    ):
        lay_out(tmp_path, {name: content})
        with pytest.raises(SourceError, match=complaint) as caught:
            list(open_source(f"captions:{tmp_path}/{name}").items())
        assert len(caught.value.message) < 300


def test_table_cell_that_unpacks_to_far_more_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_engine.sources.kinds.parquet.MAX_BYTES", 1 << 20)
    path = tmp_path / "a.parquet"
    table = pa.table({"image": [bytes(64 << 20), jpeg()], "id": [1, 2], "text": ["x", "y"]})
    pq.write_table(table, path, row_group_size=1, compression="zstd")
    bomb, good = open_source(f"parquet:{path}").items()

    assert read_bytes(good.uri) == jpeg()
    with pytest.raises(SourceError, match=r"image unpacks from [\d,]+ to [\d,]+ bytes"):
        read_bytes(bomb.uri)
    texts = pa.table({"image": [jpeg()], "text": ["z" * (64 << 20)]})
    pq.write_table(texts, path, compression="zstd")
    with pytest.raises(SourceError, match="text unpacks from"):
        list(open_source(f"parquet:{path}").items())


def test_file_larger_than_a_picture_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading.read_whole, "__defaults__", (1000,))
    (tmp_path / "a.jpg").write_bytes(bytes(1001))

    with pytest.raises(SourceError, match="it has more than 1,000 bytes"):
        read_bytes(str(tmp_path / "a.jpg"))


def test_table_text_that_is_no_utf8(tmp_path: Path) -> None:
    bad = pa.array([b"caf\xe9", b"good"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, bad.buffers())
    table = pa.table({"image": [jpeg(0), jpeg(1)], "id": [1, 2], "text": text})
    pq.write_table(table, tmp_path / "a.parquet")
    source: Any = open_source(f"parquet:{tmp_path}/a.parquet")

    found = {item.id: [c.text for c in item.captions] for item in source.items()}

    assert found == {"1": [f"caf{LOST}"], "2": ["good"]}
    assert source.notes == ["1 characters of 1 captions could not be read and are U+FFFD"]


def test_the_command_ends_with_3_and_names_the_items(tmp_path: Path) -> None:
    lay_out(tmp_path, {"p/a.jpg": jpeg(0), "p/b.jpg": jpeg(1)})
    lines = '{"image": "a.jpg", "caption": 5}\n{"image": "b.jpg", "caption": "ok"}\n'
    lay_out(tmp_path, {"p/captions.jsonl": lines})
    checkpoint = tiny.save_blip(tmp_path / "blip")

    arguments = ["encode", str(tmp_path / "p"), "--store", str(tmp_path / "s"), "--json"]
    result = CliRunner().invoke(main, [*arguments, "--model", str(checkpoint)])

    assert result.exit_code == 3
    assert json.loads(result.stdout)["images"] == {"encoded": 1, "reused": 0, "failed": 1}
    assert "a.jpg: a caption is no text: '5'" in result.stderr


def test_shard_cut_after_it_was_listed_costs_the_items_in_the_lost_part(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", [(f"{n}.jpg", jpeg(n)) for n in range(6)])
    items = list(open_source(f"webdataset:{path}").items())
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[4].offset_data + 10
    os.truncate(path, cut)

    good = [item.id for item in items if _can_read(item.uri)]

    assert good == ["0", "1", "2", "3"]


def _can_read(uri: str) -> bool:
    try:
        return bool(read_bytes(uri))
    except SourceError:
        return False
