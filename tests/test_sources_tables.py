"""The sources whose pictures are rows of tables: `parquet` and `hf`."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval_engine.errors import MissingExtra, SourceError, UsageError
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.sources.tables import Cell
from retrieval_engine.testing.images import jpeg
from retrieval_engine.testing.source_contract import Expected, Fixture, SourceContract, five_items

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def flickr30k_table(items: Mapping[str, Expected], *, split: bool = True) -> pa.Table:
    """The columns of the Flickr30k release on the hub; all of it in one file."""
    images = [{"bytes": item.data, "path": None} for item in items.values()]
    columns: dict[str, Any] = {
        "image": pa.array(images, IMAGE),
        "caption": [list(item.captions) for item in items.values()],
        "sentids": [[str(5 * n + k) for k in range(5)] for n in range(len(items))],
        "img_id": [str(n) for n in range(len(items))],
        "filename": list(items),
    }
    if split:
        columns["split"] = [item.split for item in items.values()]
    return pa.table(columns)


class TestParquetOfTheHub(SourceContract):
    def build(self, folder: Path) -> Fixture:
        items = five_items("1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
        table = flickr30k_table(items)
        pq.write_table(table[:3], folder / "test-00000-of-00002.parquet", row_group_size=2)
        pq.write_table(table[3:], folder / "test-00001-of-00002.parquet")
        return Fixture(spec=f"parquet:{folder}", items=items)


class TestParquetOfPairs(SourceContract):
    """One caption in each row, plain bytes, a number for an id."""

    def build(self, folder: Path) -> Fixture:
        items = five_items("101", "102", "103")
        rows = [(n, i, text) for n, i in items.items() for text in i.captions]
        table = pa.table(
            {
                "image_id": [int(name) for name, _, _ in rows],
                "jpg": [item.data for _, item, _ in rows],
                "text": [text for _, _, text in rows],
                "split": ["validation" if i.split == "val" else i.split for _, i, _ in rows],
            }
        )
        pq.write_table(table, folder / "pairs.parquet", row_group_size=4)
        return Fixture(spec=f"parquet:{folder}/*.parquet", items=items)


class TestHfSavedToDisk(SourceContract):
    def build(self, folder: Path) -> Fixture:
        datasets = pytest.importorskip("datasets")
        items = five_items("1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
        features = datasets.Features.from_arrow_schema(flickr30k_table(items).schema)
        features["image"] = datasets.Image()
        whole = datasets.Dataset(flickr30k_table(items)).cast(features)
        datasets.DatasetDict({"test": whole}).save_to_disk(
            str(folder / "saved"), num_shards={"test": 2}
        )
        return Fixture(spec=f"hf:{folder}/saved", items=items)


def write(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return f"parquet:{path}"


def splits(spec: str) -> dict[str, str]:
    return {item.id: item.split for item in open_source(spec).items()}


def test_a_file_and_a_split_called_test_say_nothing(tmp_path: Path) -> None:
    items = five_items("1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
    pq.write_table(flickr30k_table(items, split=False), tmp_path / "test.parquet")
    listed = [{"filename": name, "split": item.split} for name, item in items.items()]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": listed[:4]}))
    spec = f"parquet:{tmp_path}/test.parquet"

    assert set(splits(spec).values()) == {""}
    by_id = f"{spec}?splits={tmp_path}/dataset_flickr30k.json"
    assert splits(by_id) == {name: i.split for name, i in items.items()} | {"5.jpg": ""}
    assert list(splits(f"{by_id}&split=test")) == ["4.jpg"]
    source: Any = open_source(by_id)
    assert source.count() == len(list(source.items()))
    assert source.notes == ["1 of 5 ids are in no split of the list"]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("1.jpg,train\n1.jpg,test\n", "1.jpg is in two splits: train and test"),
        ("1.jpg,\n", "names no split"),
    ],
)
def test_split_lists_that_make_no_sense(tmp_path: Path, lines: str, complaint: str) -> None:
    spec = write(tmp_path / "a.parquet", filename=["1.jpg"], image=[b"x"], caption=["A dog"])
    (tmp_path / "splits.csv").write_text("filename,split\n" + lines)

    with pytest.raises(SourceError, match=complaint):
        list(open_source(f"{spec}?splits={tmp_path}/splits.csv").items())


def test_columns_by_name_and_numbered_captions(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    spec = write(
        path,
        thumbnail=[b"t1", b"t2"],
        picture=[b"p1", b"p2"],
        caption_0=["A dog", "A cat"],
        caption_1=["One dog", None],
        sha=["aa", "bb"],
        likes=[3, None],
        score=[0.5, float("nan")],
        vector=[[0.1], [0.2]],
    )

    first, second = open_source(f"{spec}?image=picture&id=sha").items()

    assert (first.id, first.uri) == ("aa", f"parquet:{path}#0,picture")
    assert read_bytes(first.uri) == b"p1"
    assert [c.text for c in first.captions] == ["A dog", "One dog"]
    assert [c.text for c in second.captions] == ["A cat"]
    assert first.meta == {"likes": 3, "score": 0.5}
    assert second.meta == {"likes": None, "score": None}
    assert first.mtime_ns == path.stat().st_mtime_ns
    assert first.size_bytes == -1
    titles = open_source(f"{spec}?image=picture&id=sha&caption=caption_1,sha").items()
    assert [[c.text for c in item.captions] for item in titles] == [["One dog", "aa"], ["bb"]]


def test_rows_without_ids_go_by_path_or_by_file_and_row(tmp_path: Path) -> None:
    images = [{"bytes": b"1", "path": "x/1.jpg"}, {"bytes": b"2", "path": None}]
    by_path = write(tmp_path / "a.parquet", image=pa.array(images, IMAGE), text=["x", "y"])
    by_row = write(tmp_path / "b.parquet", image=[b"1", b"2"], text=["x", "y"])

    assert list(splits(by_path)) == ["x/1.jpg", "a-1"]
    source: Any = open_source(by_row)
    assert [item.id for item in source.items()] == ["b-0", "b-1"]
    assert source.notes == ["the table has no ids; file and row stand for them"]


@pytest.mark.parametrize(
    ("columns", "options", "complaint"),
    [
        (
            {"image": [b"x"], "label": [3]},
            "",
            r"no column of captions; its columns: image \(binary\)",
        ),
        ({"url": ["x"], "caption": ["y"]}, "", "no column of picture bytes; its columns: url"),
        ({"image": [b"x"], "text": ["y"]}, "image=text", "no column of picture bytes 'text'"),
        ({"image": [b"x"], "text": ["y"]}, "caption=alt", "no column 'alt'; its columns: image"),
        ({"image": [b"x"], "text": ["y"]}, "id=key", "no column 'key'"),
        (
            {"image": [b"x"] * 3, "id": ["a", "b", "a"], "text": ["y"] * 3},
            "",
            r"id 'a' comes back at .*a\.parquet, row 2",
        ),
        (
            {"image": [b"x"] * 2, "id": ["a"] * 2, "text": ["y"] * 2, "split": ["train", "test"]},
            "",
            "image a is in two splits: test and train",
        ),
    ],
)
def test_table_that_makes_no_sense_is_one_line(
    tmp_path: Path, columns: Mapping[str, Sequence[Any]], options: str, complaint: str
) -> None:
    spec = write(tmp_path / "a.parquet", **columns)

    with pytest.raises(SourceError, match=complaint) as caught:
        list(open_source(f"{spec}?{options}").items())
    assert "\n" not in caught.value.message


def test_pictures_without_captions_when_told_so(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.parquet", image=[b"x", b"y"])

    assert [item.captions for item in open_source(f"{spec}?caption=none").items()] == [(), ()]


def test_empty_cells_and_rows_that_are_not_there_are_that_items_error(tmp_path: Path) -> None:
    images = [{"bytes": None, "path": "gone.jpg"}, {"bytes": b"ok", "path": "here.jpg"}]
    spec = write(tmp_path / "a.parquet", image=pa.array(images, IMAGE), text=["x", "y"])
    gone, here = open_source(spec).items()

    assert read_bytes(here.uri) == b"ok"
    with pytest.raises(SourceError, match=r"no picture bytes in .*#0,image; only the path gone"):
        read_bytes(gone.uri)
    with pytest.raises(SourceError, match="no row 9; the file has 2"):
        read_bytes(here.uri.replace("#1", "#9"))


def test_files_that_are_not_there_or_cut_off_or_of_another_form(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.parquet", id=[1], image=[b"x"], text=["y"])
    with pytest.raises(SourceError, match=r"no Parquet file matches .*none-\*"):
        open_source(f"parquet:{tmp_path}/none-*.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"cut\.parquet is no whole Parquet file"):
        open_source(f"parquet:{tmp_path}/cut.parquet")
    write(tmp_path / "b.parquet", id=[1], image=[b"x"], alt=["y"])
    with pytest.raises(SourceError, match=r"b\.parquet has other columns than .*a\.parquet"):
        open_source(f"{spec},{tmp_path}/b.parquet")


def test_any_order_and_many_threads_read_the_right_rows(tmp_path: Path) -> None:
    data = [bytes([n % 251]) * (n + 1) for n in range(500)]
    path = tmp_path / "a.parquet"
    table = pa.table({"image": data, "text": [str(n) for n in range(500)]})
    pq.write_table(table, path, row_group_size=300)
    order = [*range(0, 500, 7), *range(499, 0, -11), 3, 3, 499, 0]

    def read(row: int) -> bytes:
        return read_bytes(f"parquet:{path}#{row},image")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, order)) == [data[row] for row in order]


def test_file_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    spec = write(tmp_path / "a.parquet", image=[b"old"], text=["y"])
    (old,) = open_source(spec).items()
    assert read_bytes(old.uri) == b"old"

    write(tmp_path / "a.parquet", image=[b"new"], text=["y"])
    (new,) = open_source(spec).items()

    assert read_bytes(new.uri) == b"new"
    assert new.mtime_ns > old.mtime_ns


def test_hf_believes_split_names_only_when_told(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {
        name: datasets.Dataset.from_dict({"image": [jpeg(n)], "text": ["x"], "id": [name]})
        for n, name in enumerate(("train", "validation"))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path))

    assert splits(f"hf:{tmp_path}") == {"train": "", "validation": ""}
    assert splits(f"hf:{tmp_path}?split_from=name") == {"train": "train", "validation": "val"}
    assert splits(f"hf:{tmp_path}?name=validation") == {"validation": ""}
    with pytest.raises(SourceError, match="no split named dev; there are: train, validation"):
        open_source(f"hf:{tmp_path}?name=dev")
    with pytest.raises(UsageError, match="split_from=folder; allowed: name"):
        open_source(f"hf:{tmp_path}?split_from=folder")


def test_hf_loads_a_folder_of_parquet_as_the_hub_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    items = five_items("1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(flickr30k_table(items), tmp_path / "hub/data/test-00000-of-00001.parquet")

    found = list(open_source(f"hf:{tmp_path}/hub?split=val").items())

    assert [item.id for item in found] == ["3.jpg"]
    assert read_bytes(found[0].uri) == items["3.jpg"].data
    assert open_source(f"hf:{tmp_path}/hub").name == f"hf:{tmp_path}/hub"


def test_hf_without_network_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)

    with pytest.raises(SourceError, match="nobody/nothing is not on this machine and the hub"):
        open_source("hf:nobody/nothing")
    assert sum(slept) < 1, "the hub's client waits and tries again for longer"


def test_hf_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(MissingExtra, match="datasets is not installed"):
        open_source("hf:nobody/nothing")


@pytest.mark.parametrize("table", ["", "photos", "a/b #1, ü"])
@pytest.mark.parametrize("column", ["image", "my, image", "a/b"])
def test_a_cell_s_uri_has_room_for_a_table_s_name(table: str, column: str) -> None:
    cell = Cell(path="/data/a #2.db", row=7, column=column, table=table)
    assert Cell.of(cell.uri("sqlite")) == cell


def test_a_cell_of_a_file_with_one_table_keeps_its_uri() -> None:
    assert (
        Cell(path="/a.parquet", row=3, column="image").uri("parquet")
        == "parquet:/a.parquet#3,image"
    )
    with pytest.raises(SourceError, match="names no cell"):
        Cell.of("parquet:/a.parquet#image")
