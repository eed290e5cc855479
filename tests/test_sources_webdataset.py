"""The source `webdataset`: tar shards, whole and broken."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from retrieval_engine.errors import DecodeError, SourceError, UsageError
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.testing.images import jpeg
from retrieval_engine.testing.source_contract import Fixture, SourceContract, five_items


def shard(path: Path, members: Iterable[tuple[str, bytes | str]]) -> Path:
    """A tar as webdataset's writer makes it."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


class TestWebDataset(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = five_items("000000", "000001", "sub/000002", "000003", "000004")
        samples = [
            (
                (f"{name}.jpg", item.data),
                (f"{name}.json", json.dumps({"split": item.split})),
                (f"{name}.txt", "\n".join(item.captions)),
            )
            for name, item in items.items()
        ]
        for number, part in enumerate((samples[:2], samples[2:4], samples[4:])):
            shard(folder / f"shard-{number:03}.tar", [member for s in part for member in s])
        return Fixture(spec=f"webdataset:{folder}/shard-{{000..002}}.tar", items=items)


class TestWebDatasetWithJsonOnly(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = five_items("a", "b", captions=1)
        members = [
            member
            for name, item in items.items()
            for member in (
                (f"{name}.json", json.dumps({"caption": item.captions[0], "split": item.split})),
                (f"{name}.seg.png", item.data),
            )
        ]
        shard(folder / "x.tar", members)
        return Fixture(spec=f"webdataset:{folder}/*.tar", items=items)


def test_json_becomes_meta_and_long_names_are_whole(tmp_path: Path) -> None:
    name = "folder/" * 30 + "k"
    shard(
        tmp_path / "x.tar", [(f"{name}.jpg", jpeg()), (f"{name}.json", '{"width": 48, "url": "u"}')]
    )

    (item,) = open_source(f"webdataset:{tmp_path}/x.tar").items()

    assert item.id == name
    assert item.meta == {"width": 48, "url": "u"}
    assert item.mtime_ns == (tmp_path / "x.tar").stat().st_mtime_ns


def test_broken_picture_is_that_items_failure_alone(tmp_path: Path) -> None:
    members = [("1.jpg", jpeg(1)), ("2.jpg", b"no picture"), ("3.jpg", b""), ("4.jpg", jpeg(4))]
    shard(tmp_path / "x.tar", members)

    items = {i.id: i for i in open_source(f"webdataset:{tmp_path}/x.tar").items()}

    assert decode(read_bytes(items["4"].uri)).size == (48, 32)
    for key, reason in (("2", "not a picture"), ("3", "empty")):
        with pytest.raises(DecodeError, match=reason):
            decode(read_bytes(items[key].uri))


def test_broken_json_and_samples_without_pictures_are_told(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("1.jpg", jpeg(1)),
        ("1.json", '{"caption": '),
        ("1.txt", "A dog"),
        ("2.txt", "no picture"),
        ("3.jpg", jpeg(3)),
        ("3.json", "[]"),
    ]
    shard(tmp_path / "x.tar", members)
    source: Any = open_source(f"webdataset:{tmp_path}/x.tar")

    assert [(i.id, [c.text for c in i.captions]) for i in source.items()] == [
        ("1", ["A dog"]),
        ("3", []),
    ]
    assert source.notes == [
        "1 samples have no picture: 2",
        "2 samples have a .json that is none; taken without it: 1, 3",
    ]


@pytest.mark.parametrize("keep", ["header", "data", "boundary", "end", "one-block"])
def test_shard_that_is_cut_off_is_one_line(tmp_path: Path, keep: str) -> None:
    path = shard(tmp_path / "x.tar", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2, (200, 200)))])
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1]
    end = second.offset_data + second.size + -second.size % 512
    size = {
        "header": second.offset + 100,
        "data": second.offset_data + 50,
        "boundary": second.offset,
        "end": end,
        "one-block": 300,
    }[keep]
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(SourceError, match=r"x\.tar is damaged, cut off, or no plain tar") as caught:
        list(open_source(f"webdataset:{path}").items())
    assert "\n" not in caught.value.message


def test_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", [(f"{n}.jpg", jpeg(n)) for n in range(3)])
    with tarfile.open(path) as tar:
        middle = tar.getmembers()[1].offset
    data = bytearray(path.read_bytes())
    data[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(data)

    with pytest.raises(SourceError, match=r"no end-of-archive mark at byte"):
        list(open_source(f"webdataset:{path}").items())


def test_key_that_comes_back_needs_the_shard_in_its_id(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shard(tmp_path / f"{name}.tar", [("0.jpg", jpeg())])
    spec = f"webdataset:{tmp_path}/{{a,b}}.tar"

    with pytest.raises(SourceError, match=r"key 0 of .*b\.tar was in .*a\.tar already"):
        list(open_source(spec).items())
    assert [item.id for item in open_source(f"{spec}?id=shard").items()] == ["a/0", "b/0"]
    with pytest.raises(UsageError, match="id=key; allowed: shard"):
        open_source(f"{spec}?id=key")


def test_shards_that_are_not_there_or_no_tar(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", [("0.jpg", jpeg())])
    with pytest.raises(SourceError, match=r"1\.tar does not exist \(2 of 3 shards\)"):
        open_source(f"webdataset:{tmp_path}/{{0..2}}.tar")
    with pytest.raises(SourceError, match=r"\*\.tgz does not exist"):
        open_source(f"webdataset:{tmp_path}/*.tgz")
    (tmp_path / "text.tar").write_text("not a tar" * 200)
    with pytest.raises(SourceError, match=r"text\.tar is damaged, cut off, or no plain tar"):
        list(open_source(f"webdataset:{tmp_path}/text.tar").items())


def test_shard_that_shrank_is_that_items_error(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", [("0.jpg", jpeg())])
    (item,) = open_source(f"webdataset:{path}").items()
    path.write_bytes(path.read_bytes()[:600])

    with pytest.raises(SourceError, match="the shard ends after 88 bytes of it"):
        read_bytes(item.uri)
