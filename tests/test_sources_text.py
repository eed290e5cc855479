"""Text is what the file says: its encoding, its names' Unicode form, its line breaks, its cells."""

import codecs
import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_engine.errors import SourceError
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.sources.caption_files import read_records
from retrieval_engine.testing.images import jpeg
from tests.test_sources import captions_by_id, lay_out
from tests.test_sources_webdataset import shard

LOST = "\N{REPLACEMENT CHARACTER}"
ODD_BREAKS = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven"
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",  # with its mark
    "utf-16-le": b"",
    "utf-16-be": b"",
    "marked-be": codecs.BOM_UTF16_BE,
    "utf-32": b"",
}
TEXT = "ein Hund läuft über die Wiese"


def coded(text: str, encoding: str) -> bytes:
    name = "utf-16-be" if encoding == "marked-be" else encoding
    return ENCODINGS[encoding] + text.encode(name)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_unicode_encoding_is_recognised_wherever_text_is_read(
    tmp_path: Path, encoding: str
) -> None:
    def text(content: str) -> bytes:
        return coded(content, encoding)

    lay_out(tmp_path / "side", {"a.jpg": b"", "a.txt": text(f"{TEXT}\r\nzwei\n")})
    shard(tmp_path / "x.tar", [("a.jpg", jpeg()), ("a.txt", text(TEXT))])
    lay_out(tmp_path, {"p/a.jpg": b"", "c.csv": text(f"image;caption\r\na.jpg;{TEXT}\r\n")})
    lay_out(tmp_path, {"c.txt": text(f"a.jpg#0\t{TEXT}\n")})
    lay_out(tmp_path, {"c.json": text(json.dumps({"a.jpg": TEXT}))})
    lay_out(tmp_path, {"c.jsonl.gz": gzip.compress(text(f'{{"image":"a.jpg","text":"{TEXT}"}}'))})

    assert captions_by_id(f"folder:{tmp_path}/side") == {"a.jpg": [TEXT, "zwei"]}
    assert captions_by_id(f"webdataset:{tmp_path}/x.tar") == {"a": [TEXT]}
    for name in ("c.csv", "c.txt", "c.json", "c.jsonl.gz"):
        source: Any = open_source(f"captions:{tmp_path}/{name}?images={tmp_path}/p")
        assert [[c.text for c in item.captions] for item in source.items()] == [[TEXT]]
        assert source.notes == []


def test_bytes_in_another_encoding_are_counted(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.jpg": b"", "b.jpg": b"", "c.jpg": b"", "c.txt": "whole"})
    lay_out(tmp_path, {"a.txt": b"caf\xe9 \xe0 la\ngood\n", "b.txt": b"\xfcber\n"})
    source: Any = open_source(f"folder:{tmp_path}")

    found = {item.id: [c.text for c in item.captions] for item in source.items()}

    assert found["a.jpg"] == [f"caf{LOST} {LOST} la", "good"]
    note = "3 characters of 2 captions could not be read and are U+FFFD"
    assert source.notes == [note]
    list(source.items())
    assert source.notes == [note]
    part: Any = open_source(f"folder:{tmp_path}?glob=c.jpg")
    list(part.items())
    assert part.notes == []


FORMS: tuple[Literal["NFC"], Literal["NFD"]] = ("NFC", "NFD")


@pytest.mark.parametrize("on_disk", FORMS)
@pytest.mark.parametrize("in_file", FORMS)
def test_names_are_equal_in_either_unicode_form(tmp_path: Path, on_disk: Any, in_file: Any) -> None:
    place, name = (unicodedata.normalize(on_disk, text) for text in ("Zoë", "Ångström é.jpg"))
    named = unicodedata.normalize(in_file, "Zoë/Ångström é.jpg")
    lay_out(tmp_path, {f"p/{place}/{name}": jpeg(), "p/captions.csv": f'"{named}",a unit\n'})
    lay_out(tmp_path, {"k.json": json.dumps({"images": [{"filename": named}]})})

    (beside,) = open_source(f"folder:{tmp_path}/p").items()
    (listed,) = open_source(f"captions:{tmp_path}/p/captions.csv").items()
    (karpathy,) = open_source(f"karpathy:{tmp_path}/k.json?images={tmp_path}/p").items()

    assert beside.id == f"{place}/{name}"
    assert [c.text for c in beside.captions] == [c.text for c in listed.captions] == ["a unit"]
    assert listed.id == karpathy.id == named
    assert read_bytes(listed.uri) == read_bytes(karpathy.uri) == jpeg()


def test_exact_name_comes_before_its_other_form(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "é.jpg") for form in FORMS)
    lay_out(tmp_path, {nfc: jpeg(1), nfd: jpeg(2), "captions.csv": f"{nfc},composed\n"})
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system knows one form alone")

    assert captions_by_id(f"folder:{tmp_path}") == {nfc: ["composed"], nfd: []}
    (item,) = open_source(f"captions:{tmp_path}/captions.csv").items()
    assert read_bytes(item.uri) == jpeg(1)


def test_line_separators_within_captions_are_kept(tmp_path: Path) -> None:
    lay_out(tmp_path, {"p/a.jpg": b""})
    shard(tmp_path / "x.tar", [("a.jpg", jpeg()), ("a.txt", f"{ODD_BREAKS}\r\nsecond")])
    files = {
        "c.csv": f'image,caption\r\na.jpg,"{ODD_BREAKS}"\r\n',
        "c.tsv": f"a.jpg\t{ODD_BREAKS}\n",
        "c.txt": f"a.jpg|{ODD_BREAKS}\n",
        "c.jsonl": json.dumps({"image": "a.jpg", "caption": ODD_BREAKS}, ensure_ascii=False),
    }
    lay_out(tmp_path, files)

    for name in files:
        spec = f"captions:{tmp_path}/{name}?images={tmp_path}/p"
        assert captions_by_id(spec) == {"a.jpg": [ODD_BREAKS]}
    assert captions_by_id(f"webdataset:{tmp_path}/x.tar") == {"a": [ODD_BREAKS, "second"]}
    lay_out(tmp_path, {"p/a.txt": ODD_BREAKS})
    assert captions_by_id(f"folder:{tmp_path}/p") == {"a.jpg": [ODD_BREAKS]}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_quoted_cells_hold_line_breaks_delimiters_and_quotes(
    tmp_path: Path, delimiter: str
) -> None:
    rows = [
        delimiter.join(("image", "caption", "split")),
        delimiter.join(("a.jpg", f'"first{delimiter}\r\n\nsecond ""line"""', "train")),
        delimiter.join(("b.jpg", '"plain"', "val")),
    ]
    (tmp_path / "c.csv").write_bytes("\r\n".join(rows).encode())

    first, second = read_records(tmp_path / "c.csv")

    assert first.captions == (f'first{delimiter}\r\n\nsecond "line"',)
    assert (first.split, second.captions) == ("train", ("plain",))


def test_quotation_marks_of_a_table_that_does_not_quote_are_text(tmp_path: Path) -> None:
    lines = 'image\tcaption\na.jpg\t"Stop" says the sign\nb.jpg\ta 12" ruler\n'
    lay_out(tmp_path, {"c.tsv": lines, "d.txt": 'a.jpg#0\t"whole"\n', "e.txt": 'a.jpg|"x'})

    assert [r.captions for r in read_records(tmp_path / "c.tsv")] == [
        ('"Stop" says the sign',),
        ('a 12" ruler',),
    ]
    assert [r.captions for r in read_records(tmp_path / "d.txt")] == [('"whole"',)]
    assert [r.captions for r in read_records(tmp_path / "e.txt")] == [('"x',)]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("c.csv", "image,caption,split\na.jpg,x,val\nb.jpg,a dog, a cat,train\n", 3),
        ("c.csv", "image,caption\na.jpg,a dog, a cat\n", 2),
        ("c.csv", 'caption,image\n"one\ntwo",a.jpg\nx,b.jpg,c.jpg\n', 4),
        ("c.csv", "image;caption\na.jpg;one;two\n", 2),
        ("c.tsv", "image\tcaption\na.jpg\tone\ttwo\n", 2),
        ("c.txt", "image|caption|split\na.jpg|one|two|val\n", 2),
    ],
)
def test_row_with_more_cells_than_columns_is_an_error_with_its_line(
    tmp_path: Path, name: str, content: str, place: int
) -> None:
    lay_out(tmp_path, {name: content})

    with pytest.raises(SourceError, match=rf"{name}:{place} has \d cells, the header \d") as caught:
        list(read_records(tmp_path / name))
    assert "\n" not in caught.value.message
    assert "quotation marks" in caught.value.hint


def test_blank_cells_behind_the_last_column_are_nothing(tmp_path: Path) -> None:
    lay_out(tmp_path, {"c.csv": "image;caption\na.jpg;x;;\n;;;\nb.jpg;y; \n"})

    assert [r.captions for r in read_records(tmp_path / "c.csv")] == [("x",), ("y",)]


@settings(max_examples=60, deadline=None)
@given(
    captions=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
            lambda text: text.strip() == text and "\0" not in text
        ),
        min_size=1,
        max_size=5,
    ),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_captions_come_back_from_csv_and_json_lines(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str], encoding: str
) -> None:
    import csv

    folder = tmp_path_factory.getbasetemp()
    with (folder / "any.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *(("a.jpg", text) for text in captions)])
    lines = [json.dumps({"image": "a.jpg", "text": t}, ensure_ascii=False) for t in captions]
    (folder / "any.jsonl").write_bytes("\n".join(lines).encode(encoding))

    for name in ("any.csv", "any.jsonl"):
        assert [r.captions for r in read_records(folder / name)] == [(t,) for t in captions]
