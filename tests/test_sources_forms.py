"""Ordinary forms are understood: headers, delimiters, names, columns, and how a source is named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.cli.options import UserPath
from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.sources import open_source
from retrieval_engine.sources.caption_files import read_records
from retrieval_engine.testing.images import jpeg
from tests.test_sources import captions_by_id, lay_out

TWO = {"a.jpg": ["a dog"], "b.jpg": ["a cat"]}


def table(folder: Path, content: str, options: str = "") -> dict[str, list[str]]:
    lay_out(folder, {"p/a.jpg": b"", "p/b.jpg": b"", "table.csv": content})
    return captions_by_id(f"captions:{folder}/table.csv?images={folder}/p{options}")


@pytest.mark.parametrize(
    "header",
    [
        *("filepath\ttitle", "Image_Path,Caption Text", "IMAGE NAME;Comment", "img-path,alt text"),
        *("file name,description", '"Filename","Prompt"', "picture|caption", "Image.File\tText"),
        *("Bild;Beschreibung", "foto,titel", "what;ever", "x\ty"),
    ],
)
def test_headers_of_many_tools(tmp_path: Path, header: str) -> None:
    delimiter = next(mark for mark in "\t|;," if mark in header)
    lines = [header, f"a.jpg{delimiter}a dog", f"b.jpg{delimiter}a cat"]

    assert table(tmp_path, "\n".join(lines)) == TWO


def test_columns_in_any_order_with_others_between(tmp_path: Path) -> None:
    lines = "Caption Text;id;Image Path;Likes\na dog;7;a.jpg;3\na cat;8;b.jpg;4\n"

    assert table(tmp_path, lines) == TWO
    (first, _) = open_source(f"captions:{tmp_path}/table.csv?images={tmp_path}/p").items()
    assert first.meta == {"id": "7", "likes": "3"}


def test_image_comes_before_less_usual_names_for_it(tmp_path: Path) -> None:
    assert table(tmp_path, "title,name,image,caption\nT,N,a.jpg,a dog\nT,N,b.jpg,a cat\n") == TWO


def test_columns_by_name(tmp_path: Path) -> None:
    lines = "nr,Datei,Titel,Alt Text\n1,a.jpg,a dog,woof\n2,b.jpg,a cat,\n"

    assert table(tmp_path, lines, "&image=Datei&caption=titel") == TWO
    assert table(tmp_path, lines, "&image=datei&caption=Titel,Alt Text") == {
        "a.jpg": ["a dog", "woof"],
        "b.jpg": ["a cat"],
    }
    with pytest.raises(SourceError, match="has no columns Datei, Name; its first line is 'nr,Dat"):
        table(tmp_path, lines, "&image=Datei&caption=Name")
    with pytest.raises(SourceError, match="no column of captions; its columns: nr, Datei") as no:
        table(tmp_path, "nr,Datei,Titel\n1,a.jpg,a dog\n2,b.jpg,a cat\n")
    assert "`?caption=COLUMN`" in no.value.hint


def test_keys_by_name_in_json(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.jpg": b"", "c.jsonl": '{"Datei": "a.jpg", "Titel": "x", "image": "n"}'})

    assert captions_by_id(f"captions:{tmp_path}/c.jsonl?image=Datei&caption=Titel") == {
        "a.jpg": ["x"]
    }
    lay_out(tmp_path, {"d.json": '[{"Image Path": "a.jpg", "Caption Text": ["y", "z"]}]'})
    assert captions_by_id(f"captions:{tmp_path}/d.json") == {"a.jpg": ["y", "z"]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"a.jpg": ["x", "y"], "b.jpg": "z"}, {"a.jpg": ["x", "y"], "b.jpg": ["z"]}),
        (
            {"a.jpg": {"captions": ["x"], "split": "val"}, "./b.jpg": {"title": "y", "n": 3}},
            {"a.jpg": ["x"], "b.jpg": ["y"]},
        ),
    ],
)
def test_json_object_by_image(
    tmp_path: Path, content: dict[str, Any], expected: dict[str, list[str]]
) -> None:
    lay_out(tmp_path, {"a.jpg": b"", "b.jpg": b"", "c.json": json.dumps(content)})

    assert captions_by_id(f"captions:{tmp_path}/c.json") == expected


def test_json_of_another_kind_names_that_kind(tmp_path: Path) -> None:
    lay_out(tmp_path, {"c.json": '{"info": {}, "images": [], "annotations": []}'})

    with pytest.raises(SourceError, match="found the key 'info'") as caught:
        list(read_records(tmp_path / "c.json"))
    assert "coco:FILE" in caught.value.hint


@pytest.mark.parametrize("name", ["sub/c.jpg", "./sub/c.jpg", "sub\\c.jpg", ".\\sub\\c.jpg"])
def test_names_of_other_systems(tmp_path: Path, name: str) -> None:
    lay_out(tmp_path, {"sub/c.jpg": b"", "captions.csv": f"{name},x\n"})
    lay_out(tmp_path, {"k.json": json.dumps({"images": [{"id": 1, "file_name": name}]})})
    annotations = [{"image_id": 1, "caption": "x"}]
    coco = {"images": [{"id": 1, "file_name": name}], "annotations": annotations}
    lay_out(tmp_path, {"k.json": json.dumps(coco)})
    expected = {"sub/c.jpg": ["x"]}

    assert captions_by_id(f"folder:{tmp_path}") == expected
    assert captions_by_id(f"captions:{tmp_path}/captions.csv") == expected
    assert captions_by_id(f"coco:{tmp_path}/k.json") == expected


def test_the_same_image_under_two_spellings_is_one(tmp_path: Path) -> None:
    lay_out(tmp_path, {"s/a.jpg": b"", "c.csv": "s/a.jpg,x\n./s/a.jpg,y\ns\\a.jpg,z\n"})

    assert captions_by_id(f"captions:{tmp_path}/c.csv") == {"s/a.jpg": ["x", "y", "z"]}


def test_backslash_in_a_name_of_this_system(tmp_path: Path) -> None:
    lay_out(tmp_path, {"s\\a.jpg": b"", "captions.csv": "s\\a.jpg,x\n"})

    (item,) = open_source(f"captions:{tmp_path}/captions.csv").items()
    assert item.uri == str(tmp_path / "s\\a.jpg")
    assert captions_by_id(f"folder:{tmp_path}") == {"s\\a.jpg": ["x"]}


@pytest.mark.parametrize(
    "text",
    [
        pa.array(["x", "y"]).dictionary_encode(),
        pa.array(["x", "y"], pa.large_string()),
        pa.array(["x", "y"], pa.string_view()),
        pa.array([["x"], ["y"]], pa.large_list(pa.large_string())),
        pa.array([["x"], ["y"]], pa.list_(pa.string(), 1)),
    ],
    ids=["dictionary", "large_string", "string_view", "large_list", "fixed_size_list"],
)
def test_columns_of_every_kind_of_text(tmp_path: Path, text: pa.Array) -> None:
    split = pa.array(["train", "val"]).dictionary_encode()
    columns = {"image": [jpeg(0), jpeg(1)], "id": ["a", "b"], "caption": text, "split": split}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")

    items = list(open_source(f"parquet:{tmp_path}/a.parquet").items())

    assert [[c.text for c in item.captions] for item in items] == [["x"], ["y"]]
    assert [item.split for item in items] == ["train", "val"]


@pytest.mark.parametrize(
    "image", [pa.large_binary(), pa.binary_view(), pa.binary(len(jpeg()))], ids=str
)
def test_columns_of_every_kind_of_bytes(tmp_path: Path, image: pa.DataType) -> None:
    from retrieval_engine.sources import read_bytes

    columns = {"jpg": pa.array([jpeg()], image), "TEXT": ["x"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")

    (item,) = open_source(f"parquet:{tmp_path}/a.parquet").items()

    assert read_bytes(item.uri) == jpeg()
    assert [c.text for c in item.captions] == ["x"]


def test_files_of_one_table_may_differ_in_width_and_coding_alone(tmp_path: Path) -> None:
    def write(name: str, image: pa.DataType, text: pa.DataType, **more: Any) -> None:
        columns = {"image": pa.array([name.encode()], image), "caption": pa.array(["x"], text)}
        pq.write_table(pa.table({**columns, **more}), tmp_path / f"{name}.parquet")

    write("a", pa.binary(), pa.string(), n=pa.array([1], pa.int32()))
    write("b", pa.large_binary(), pa.large_string(), n=pa.array([2], pa.int64()))
    write("c", pa.binary(), pa.dictionary(pa.int8(), pa.string()), n=pa.array([3], pa.int8()))
    spec = f"parquet:{tmp_path}/a.parquet,{tmp_path}/b.parquet,{tmp_path}/c.parquet"
    assert {i.id: i.meta["n"] for i in open_source(spec).items()} == {"a-0": 1, "b-0": 2, "c-0": 3}

    write("d", pa.binary(), pa.string(), n=pa.array(["1"]))
    with pytest.raises(SourceError, match=r"d\.parquet has other columns than"):
        open_source(f"{spec},{tmp_path}/d.parquet")


@pytest.mark.parametrize("name", ["who?", "50% off", "a?split=val", "scenes:7", "coco", "x&y=z?"])
def test_folders_of_any_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {f"{name}/train/a.jpg": b"", f"{name}/b.png": b""})
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / name)

    for spec in (name, path, f"folder:{name}", f"folder:{path}"):
        assert list(captions_by_id(spec)) == ["b.png", "train/a.jpg"]
        assert open_source(spec).name == f"folder:{path}"
    for option in ("glob=*.jpg", "split_from=folder&split=train"):
        assert list(captions_by_id(f"folder:{name}?{option}")) == ["train/a.jpg"]
    assert list(captions_by_id(f"{name}?glob=*.jpg")) == ["train/a.jpg"]


def test_percent_coded_path_and_pattern_with_question_marks(tmp_path: Path) -> None:
    lay_out(tmp_path, {"who?/a.jpg": b""})
    assert list(captions_by_id(f"folder:{tmp_path}/who%3F?glob=*.jpg")) == ["a.jpg"]

    for n in (1, 2):
        pq.write_table(
            pa.table({"image": [jpeg(n)], "caption": [f"{n}"]}), tmp_path / f"t{n}.parquet"
        )
    assert captions_by_id(f"parquet:{tmp_path}/t?.parquet") == {"t1-0": ["1"], "t2-0": ["2"]}
    assert captions_by_id(f"parquet:{tmp_path}/t?.parquet?caption=none") == {"t1-0": [], "t2-0": []}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", "parquet"),
        ("a.tar", "webdataset"),
        ("a.csv", "captions"),
        ("a.tsv.gz", "capt"),
    ],
)
def test_file_without_a_kind_is_told_its_kind(tmp_path: Path, name: str, kind: str) -> None:
    lay_out(tmp_path, {name: ""})

    with pytest.raises(UsageError, match="is a file") as caught:
        open_source(str(tmp_path / name))
    assert f"{kind}" in caught.value.hint
    assert str(tmp_path / name) in caught.value.hint


def test_home_directory_in_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    lay_out(tmp_path, {"p/a.jpg": b"", "p/c.csv": "a.jpg,x\n"})

    for spec in ("~/p", "folder:~/p", "captions:~/p/c.csv", "captions:~/p/c.csv?images=~/p"):
        assert list(captions_by_id(spec)) == ["a.jpg"]
        assert str(tmp_path) in open_source(spec).name


def test_home_directory_in_every_path_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    assert UserPath().convert("~/st", None, None) == tmp_path / "st"
    assert UserPath().convert("~nobody-of-that-name/x", None, None) == Path(
        "~nobody-of-that-name/x"
    )
    result = CliRunner().invoke(main, ["store", "info", "--store=~/none"])
    assert result.exit_code == 1
    assert str(tmp_path / "none") in result.stderr


def test_no_command_takes_a_path_past_that_type() -> None:
    import click

    def paths(command: click.Command, context: click.Context) -> list[click.Parameter]:
        found = [p for p in command.params if isinstance(p.type, click.Path)]
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                found += paths(child, context)
        return found

    every = paths(main, click.Context(main))
    assert len(every) > 20
    assert [p.name for p in every if not isinstance(p.type, UserPath)] == []
