"""Every file of a folder, member of a shard and row of a table is an item, noted, or refused."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retrieval_engine.errors import SourceError
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.sources.decode import decode, picture_suffixes
from retrieval_engine.testing.images import encoded, jpeg, photo
from tests.test_sources import captions_by_id, lay_out
from tests.test_sources_webdataset import shard

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read(spec: str) -> tuple[dict[str, list[str]], list[str]]:
    """The captions of each item, and the notes of a whole reading."""
    source: Any = open_source(spec)
    found = {item.id: [c.text for c in item.captions] for item in source.items()}
    return found, source.notes


@pytest.mark.parametrize("suffix", sorted(picture_suffixes()))
def test_every_ending_that_can_be_decoded_is_a_picture_everywhere(
    tmp_path: Path, suffix: str
) -> None:
    name = f"a{suffix}"
    lay_out(tmp_path, {f"f/{name}": jpeg(), f"f/{suffix[1:].upper()}{suffix.upper()}": jpeg(1)})
    shard(tmp_path / "x.tar", [(name, jpeg()), ("a.txt", "in a shard")])
    lay_out(tmp_path, {"c.csv": f"{name},in a table\n"})

    assert {name, f"{suffix[1:].upper()}{suffix.upper()}"} == captions_by_id(
        f"folder:{tmp_path}/f"
    ).keys()
    assert captions_by_id(f"webdataset:{tmp_path}/x.tar") == {"a": ["in a shard"]}
    assert captions_by_id(f"captions:{tmp_path}/c.csv?images={tmp_path}/f") == {
        name: ["in a table"]
    }


def test_formats_under_their_less_usual_endings_decode(tmp_path: Path) -> None:
    picture = photo(3)
    for name, kind in (
        *(("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a.dib", "DIB"), ("a.apng", "PNG")),
        *(("a.jp2", "JPEG2000"), ("a.j2k", "JPEG2000"), ("a.pgm", "PPM"), ("a.ico", "ICO")),
        *(("a.pbm", "PPM"), ("a.qoi", "QOI"), ("a.tif", "TIFF")),
    ):
        mode = {"a.pgm": "L", "a.pbm": "1"}.get(name, "RGB")
        picture.convert(mode).save(tmp_path / name, kind)
    items = list(open_source(f"folder:{tmp_path}").items())

    sizes = {item.id: decode(read_bytes(item.uri)).size for item in items}
    assert len(sizes) == 11
    # an icon is no larger than 16, 24, 32, …: it has its own sizes
    assert {name for name, size in sizes.items() if size != (48, 32)} == {"a.ico"}


def test_files_that_are_no_pictures_are_counted_by_ending(tmp_path: Path) -> None:
    files = ["a.jpg", "a.txt", "b.mov", "c.MOV", "s/d.xmp", "s/alone.txt", "README", ".DS_Store"]
    lay_out(tmp_path, {**dict.fromkeys(files, b""), "captions.csv": "a.jpg,x\n"})

    assert read(f"folder:{tmp_path}")[1] == [
        "5 other files are no pictures by their endings: .mov 2, (none) 1, .txt 1, .xmp 1"
    ]


def test_a_store_json_of_somebody_else_hides_nothing(tmp_path: Path) -> None:
    ours = json.dumps({"format_version": 1, "fingerprint": "f", "spec": {}})
    lay_out(tmp_path, {"shop/store.json": '{"open": "9-17"}', "shop/a.jpg": jpeg()})
    lay_out(tmp_path, {"odd/store.json": "[" * 5000, "odd/b.jpg": jpeg()})
    lay_out(tmp_path, {"ours/store.json": ours, "ours/c.jpg": jpeg()})
    (tmp_path / "dir" / "store.json").mkdir(parents=True)
    lay_out(tmp_path, {"dir/d.jpg": jpeg()})

    found, notes = read(f"folder:{tmp_path}")

    assert list(found) == ["dir/d.jpg", "odd/b.jpg", "shop/a.jpg"]
    assert notes == [
        "1 folders are stores of features",
        "2 other files are no pictures by their endings: .json 2",
    ]


def test_sidecars_of_all_names_and_a_folder_called_like_one(tmp_path: Path) -> None:
    lay_out(tmp_path, dict.fromkeys(["a.jpg", "b.JPG", "c.png", "d.jpg", "e.jpg"], b""))
    texts = {"a.txt": "A1", "a.jpg.txt": "A2", "b.TXT": "B", "c.PNG.Txt": "C", "d.txt/x": "no"}
    lay_out(tmp_path, texts)

    found, notes = read(f"folder:{tmp_path}")

    assert found == {
        "a.jpg": ["A1", "A2"],
        "b.JPG": ["B"],
        "c.png": ["C"],
        "d.jpg": [],
        "e.jpg": [],
    }
    assert notes == ["1 other files are no pictures by their endings: (none) 1"]


def test_two_sidecars_that_differ_in_case_alone_are_each_their_own(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.jpg": b"", "A.jpg": b"", "a.txt": "small", "A.txt": "large"})
    if len(os.listdir(tmp_path)) < 4:
        pytest.skip("this file system does not tell a from A")

    assert captions_by_id(f"folder:{tmp_path}") == {"A.jpg": ["large"], "a.jpg": ["small"]}


def test_shard_with_dots_in_its_keys(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = []
    for n in range(4):
        members += [(f"d/run.2.{n}.jpg", jpeg(n)), (f"d/run.2.{n}.txt", f"caption {n}")]
    shard(tmp_path / "x.tar", members)

    items = list(open_source(f"webdataset:{tmp_path}/x.tar").items())

    assert {i.id: [c.text for c in i.captions] for i in items} == {
        f"d/run.2.{n}": [f"caption {n}"] for n in range(4)
    }
    assert [read_bytes(item.uri) for item in items] == [jpeg(n) for n in range(4)]


def test_every_picture_of_a_sample_is_an_item_and_every_text_is_used(tmp_path: Path) -> None:
    shard(
        tmp_path / "x.tar",
        [
            ("0.before.png", encoded(photo(1), "PNG")),
            ("0.after.webp", encoded(photo(2), "WEBP")),
            ("0.after.txt", "only after"),
            ("0.prompt.txt", "of both"),
            ("0.json", '{"seed": 3}'),
            ("1.image.jpg", jpeg(3)),
            ("1.alt.txt", "alone"),
            ("1.txt", "in its sample"),
        ],
    )

    items = {i.id: i for i in open_source(f"webdataset:{tmp_path}/x.tar").items()}

    assert {key: [c.text for c in item.captions] for key, item in items.items()} == {
        "0.before": ["of both"],
        "0.after": ["only after", "of both"],
        "1": ["alone", "in its sample"],
    }
    assert items["0.before"].meta == items["0.after"].meta == {"seed": 3}


def test_members_that_give_no_item_are_counted(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "x.tar",
        [
            ("./0.jpg", jpeg()),
            ("./._0.jpg", b"\0\5\x16\7"),
            ("__MACOSX/0.jpg", b"\0"),
            ("0.cls", "3"),
            ("1.cls", "4"),
            ("1.npy", b"x"),
            ("2.txt", "no picture"),
        ],
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("3.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "0.jpg"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)

    found, notes = read(f"webdataset:{path}")

    assert list(found) == ["0"]
    assert notes == [
        "1 samples have no picture: 2",
        "6 members are neither pictures nor texts: macOS's ._ files 2, .cls 2, .npy 1, "
        "links and devices 1",
    ]


def test_hard_link_in_a_shard_is_the_picture_it_names(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", [("0.jpg", jpeg(7)), ("0.txt", "a")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "0.jpg"
        tar.addfile(link)

    items = list(open_source(f"webdataset:{path}").items())

    assert [item.id for item in items] == ["0", "1"]
    assert read_bytes(items[1].uri) == jpeg(7)


def test_two_members_of_one_name_fail_and_their_neighbours_do_not(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        *(("0.jpg", jpeg(0)), ("1.jpg", jpeg(1)), ("1.txt", "x"), ("1.jpg", jpeg(2)))
    ]
    shard(tmp_path / "x.tar", members)

    items = {i.id: i for i in open_source(f"webdataset:{tmp_path}/x.tar").items()}

    assert items["0"].fault == ""
    assert items["1"].fault.endswith("x.tar has two members called 1.jpg")


def test_unsorted_shard_equals_the_sorted_one(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        *((f"{n}.jpg", jpeg(n)) for n in range(5)),
        *((f"{n}.txt", f"caption {n}") for n in reversed(range(5))),
        *((f"{n}.json", json.dumps({"n": n})) for n in (2, 0, 4, 1, 3)),
    ]
    shard(tmp_path / "mixed.tar", members)
    shard(tmp_path / "sorted.tar", sorted(members, key=lambda m: m[0]))

    mixed, plain = (
        [(i.id, [c.text for c in i.captions], dict(i.meta), read_bytes(i.uri)) for i in items]
        for items in (
            open_source(f"webdataset:{tmp_path}/{name}.tar").items() for name in ("mixed", "sorted")
        )
    )
    assert mixed == plain
    assert mixed[4] == ("4", ["caption 4"], {"n": 4}, jpeg(4))


def test_key_that_comes_back_has_the_hint_that_helps(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shard(tmp_path / folder / "0.tar", [("k.jpg", jpeg())])
    spec = f"webdataset:{tmp_path}/*/0.tar"

    with pytest.raises(SourceError) as plain:
        list(open_source(spec).items())
    with pytest.raises(SourceError) as by_shard:
        list(open_source(f"{spec}?id=shard").items())
    assert "`?id=shard`" in plain.value.hint
    assert by_shard.value.hint == "two shards have one name: rename one"


def rows(path: Path, *, number: int, **columns: Any) -> str:
    pictures = [encoded(Image.new("RGB", (8, 8), (n, 0, 0)), "PNG") for n in range(number)]
    pq.write_table(pa.table({"image": pictures, **columns}), path)
    return f"parquet:{path}"


@pytest.mark.parametrize("identity", ["path", "id"])
def test_rows_of_one_id_with_other_pictures_are_refused_with_the_way_out(
    tmp_path: Path, identity: str
) -> None:
    path = tmp_path / "a.parquet"
    texts = ["one", "two", "three"]
    if identity == "id":
        spec = rows(path, number=3, image_id=[7, 7, 7], caption=texts)
    else:
        cells = [{"bytes": jpeg(n), "path": "x.jpg"} for n in range(3)]
        pq.write_table(pa.table({"image": pa.array(cells, IMAGE), "caption": texts}), path)
        spec = f"parquet:{path}"

    with pytest.raises(SourceError, match=r"has another picture at .*row 1") as caught:
        list(open_source(spec).items())
    assert "`?id=row`" in caught.value.hint
    found, notes = read(f"{spec}?id=row")
    assert found == {"a-0": ["one"], "a-1": ["two"], "a-2": ["three"]}
    assert notes == []


def test_rows_of_one_id_with_the_same_picture_are_one_item(tmp_path: Path) -> None:
    one = encoded(photo(), "PNG")
    table = pa.table({"image": [one, one, jpeg()], "id": [1, 1, 2], "text": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "a.parquet")

    assert captions_by_id(f"parquet:{tmp_path}/a.parquet") == {"1": ["x", "y"], "2": ["z"]}


def test_column_called_row_is_a_column(tmp_path: Path) -> None:
    spec = rows(tmp_path / "a.parquet", number=2, row=["p", "q"], caption=["x", "y"])

    assert list(captions_by_id(f"{spec}?id=row")) == ["p", "q"]


def test_tar_names_that_are_no_utf8_are_read(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        info = tarfile.TarInfo("café.jpg")
        info.size = len(jpeg())
        tar.addfile(info, io.BytesIO(jpeg()))
    (tmp_path / "x.tar").write_bytes(out.getvalue())

    (item,) = open_source(f"webdataset:{tmp_path}/x.tar").items()

    assert item.id == "caf\N{REPLACEMENT CHARACTER}"
    assert read_bytes(item.uri) == jpeg()


def test_second_picture_of_the_same_name_and_another_ending(tmp_path: Path) -> None:
    members = [("0.jpg", jpeg(1)), ("0.png", encoded(photo(2), "PNG")), ("0.txt", b"both")]
    shard(tmp_path / "x.tar", [*members, ("1.jpg", jpeg(3))])

    items = list(open_source(f"webdataset:{tmp_path}/x.tar").items())

    assert {item.id: [c.text for c in item.captions] for item in items} == {
        "0.jpg": ["both"],
        "0.png": ["both"],
        "1": [],
    }
    assert read_bytes(items[0].uri) == jpeg(1)


def test_json_beside_a_text_keeps_what_the_text_does_not_say(tmp_path: Path) -> None:
    one, other = json.dumps({"caption": "x", "n": 1}), json.dumps({"title": "T", "n": 2})
    members: list[tuple[str, bytes | str]] = [
        *(("0.jpg", jpeg()), ("0.txt", "x"), ("0.json", one)),
        *(("1.jpg", jpeg()), ("1.txt", "y"), ("1.json", other)),
    ]
    shard(tmp_path / "x.tar", members)

    metas = [dict(item.meta) for item in open_source(f"webdataset:{tmp_path}/x.tar").items()]

    assert metas == [{"n": 1}, {"title": "T", "n": 2}]


def test_numbered_captions_come_before_a_title(tmp_path: Path) -> None:
    spec = rows(tmp_path / "a.parquet", number=1, title=["T"], caption_0=["x"], caption_1=["y"])
    assert captions_by_id(spec) == {"a-0": ["x", "y"]}

    spec = rows(tmp_path / "b.parquet", number=1, Title=["T"])
    assert captions_by_id(spec) == {"b-0": ["T"]}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_unreadable_folder_takes_nothing_out_of_a_store(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.jpg": jpeg(), "s/b.jpg": jpeg(1)})
    (tmp_path / "s").chmod(0)
    source: Any = open_source(f"folder:{tmp_path}")

    assert [item.id for item in source.items()] == ["a.jpg"]
    assert source.is_partial
    assert source.notes == ["1 folders cannot be read"]
