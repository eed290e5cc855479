"""Files that say which captions an image has, in every common form.

    name.jpg#0<TAB>caption                        Flickr8k.token.txt, results_20130124.token
    name.jpg|caption     name.jpg| 0| caption     with or without a header line
    name.jpg,caption     name.jpg,0,caption       CSV with its quoting
    {"image": "name.jpg", "caption": "…"}         .jsonl, or a list of these in .json

All may be gzipped. UTF-8 with or without a byte order mark, any newlines.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from retrieval_engine.errors import SourceError
from retrieval_engine.records import Json
from retrieval_engine.sources.source_name import split_name

IMAGE_KEYS = (
    *("image", "file_name", "filename", "image_name", "name", "file", "path", "image_path"),
)
CAPTION_KEYS = (
    *("captions", "caption", "comment", "sentences", "sentence", "texts", "text", "description"),
)
_NUMBER_KEYS = ("comment_number", "caption_number", "number")
_NAME_THEN = re.compile(
    r"^\ufeff?\"?[^\t]*?\.(?:jpe?g|png|gif|bmp|webp|tiff?|ppm|heic|avif)(?:#\d+)?\"?\s*([\t|,])",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"^(.+)#(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one line or object of an annotation says about one image.

    Attributes:
        image: name of the image in the annotation.
        captions: its captions, none empty.
        numbers: the name the annotation gives to each of them, e.g. `0`, or nothing.
        split: its split under the usual name, or empty.
        meta: every other thing said.
        files: where the image may lie under the image folder, most likely first; empty means
            under its name.
    """

    image: str
    captions: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    split: str = ""
    meta: Mapping[str, Json] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def followed_by(self, other: "Record") -> "Record | None":
        """One record that says both, or None where these two cannot be one.

        A table of many captions takes half the memory when those of an image are one record.
        """
        if self.meta or other.meta or self.split != other.split or self.files != other.files:
            return None
        if bool(self.numbers) != bool(other.numbers):
            return None
        return replace(
            self,
            captions=self.captions + other.captions,
            numbers=tuple(sys.intern(n) for n in (*self.numbers, *other.numbers)),
        )


def read_records(path: Path) -> Iterator[Record]:
    """Every record of the file, in its order, one at a time; an image may come several times.

    Args:
        path: a .json, .jsonl or a text file with one caption in each line; also gzipped.

    Raises:
        SourceError: the file cannot be read or a line makes no sense; the message has its number.
    """
    form = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    try:
        if form == "json":
            yield from _objects(path)
        elif form in {"jsonl", "ndjson"}:
            yield from _json_lines(path)
        else:
            yield from _table(path)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise SourceError(f"cannot read {path}: {error}") from error


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file, gzipped or not; bytes that are no UTF-8 become U+FFFD."""
    with path.open("rb") as raw:
        data = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
        with io.TextIOWrapper(data, "utf-8-sig", errors="replace", newline=newline) as text:
            yield text


def load_json(path: Path) -> Json:
    """The value of a whole JSON file.

    Raises:
        SourceError: it cannot be read or is no JSON.
    """
    try:
        with open_text(path) as stream:
            value: Json = json.load(stream)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        raise SourceError(f"{path} is no JSON: {error}") from error
    return value


def record_of(entry: Json, where: str) -> Record:
    """The record a JSON object stands for.

    Args:
        entry: the object; its image under one of `IMAGE_KEYS`, its captions under one of
            `CAPTION_KEYS`, as a string, strings, or objects with `raw`.
        where: file and line or position, for messages.

    Raises:
        SourceError: it is no object or names no image.
    """
    if not isinstance(entry, dict):
        raise SourceError(f"{where}: expected a JSON object, found {str(entry)[:60]!r}")
    image_key = next((key for key in IMAGE_KEYS if isinstance(entry.get(key), str)), None)
    if image_key is None:
        raise SourceError(
            f"{where}: no image name; found the keys {', '.join(entry) or 'none'}",
            hint=f"the name must be under one of: {', '.join(IMAGE_KEYS)}",
        )
    caption_key = next((key for key in CAPTION_KEYS if key in entry), "")
    return Record(
        image=str(entry[image_key]),
        captions=captions_of(entry.get(caption_key), where),
        split=split_name(str(entry.get("split") or "")),
        meta={k: v for k, v in entry.items() if k not in {image_key, caption_key, "split"}},
    )


def captions_of(value: Json, where: str) -> tuple[str, ...]:
    """The captions in a JSON value: a string, strings, objects with `raw`, or nothing.

    Raises:
        SourceError: it is something else.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    texts = []
    for each in values:
        text = each.get("raw", each.get("caption")) if isinstance(each, dict) else each
        if not isinstance(text, str):
            raise SourceError(f"{where}: a caption is no text: {str(each)[:60]!r}")
        if text.strip():
            texts.append(text.strip())
    return tuple(texts)


def _objects(path: Path) -> Iterator[Record]:
    value = load_json(path)
    if not isinstance(value, list):
        raise SourceError(f"{path}: expected a list of objects, one for each image")
    for position, entry in enumerate(value):
        yield record_of(entry, f"{path}: object {position + 1}")


def _json_lines(path: Path) -> Iterator[Record]:
    with open_text(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise SourceError(f"{path}:{number} is no JSON: {error}") from error
            yield record_of(entry, f"{path}:{number}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """How the lines of a table are cut."""

    delimiter: str
    names: tuple[str, ...]
    has_header: bool

    def place(self, keys: Sequence[str]) -> int:
        """Position of the first column with one of these names, or -1."""
        return next((i for i, name in enumerate(self.names) if name in keys), -1)


def _columns(first: str) -> _Columns:
    """The form of a table, from its first line."""
    named = _NAME_THEN.match(first)
    delimiter = named[1] if named else next((d for d in "\t|" if d in first), ",")
    names = tuple(cell.strip().strip('"').lower() for cell in first.split(delimiter))
    heads = _Columns(delimiter=delimiter, names=names, has_header=True)
    if heads.place(IMAGE_KEYS) >= 0 and heads.place((*CAPTION_KEYS, "split")) >= 0:
        return heads
    cells = first.split(delimiter, 2)
    numbered = len(cells) == 3 and cells[1].strip().isdecimal()
    plain = ("image", "number", "caption") if numbered else ("image", "caption")
    return _Columns(delimiter=delimiter, names=plain, has_header=False)


def _table(path: Path) -> Iterator[Record]:
    with open_text(path) as stream:
        first = next((line for line in stream if line.strip()), "")
    columns = _columns(first.rstrip("\r\n"))
    header_due = columns.has_header
    for number, cells in _rows(path, columns):
        if header_due:
            header_due = False
            continue
        record = _record_of_cells(cells, columns, f"{path}:{number}")
        if record is not None:
            yield record


def _rows(path: Path, columns: _Columns) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that is not blank; a caption at the end keeps its commas."""
    delimiter, last = columns.delimiter, len(columns.names) - 1
    if delimiter != ",":  # no quoting in these: a quotation mark is part of the caption
        with open_text(path) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n").split(delimiter, last)
        return
    with open_text(path, newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, [*cells[:last], ",".join(cells[last:])]
        except csv.Error as error:
            raise SourceError(f"{path}:{reader.line_num}: {error}") from error


def _record_of_cells(cells: list[str], columns: _Columns, where: str) -> Record | None:
    image_at, caption_at = columns.place(IMAGE_KEYS), columns.place(CAPTION_KEYS)
    number_at, split_at = columns.place(_NUMBER_KEYS), columns.place(("split",))
    if len(cells) == 2 and len(columns.names) == 3 and number_at == 1:
        # `2199200615.jpg| 4   A dog runs …` of Flickr30k's results.csv lacks its second bar
        number, _, text = cells[1].strip().partition(" ")
        cells = [cells[0], number, text] if number.isdecimal() else cells
    if len(cells) <= max(image_at, caption_at) or not cells[image_at].strip():
        form = columns.delimiter.join(columns.names)
        raise SourceError(f"{where}: expected {form!r}, found {columns.delimiter.join(cells)!r}")
    image, number = cells[image_at].strip(), ""
    if match := _NUMBERED.match(image):
        image, number = match[1], match[2]
    elif number_at >= 0:
        number = cells[number_at].strip()
    text = cells[caption_at].strip() if caption_at >= 0 else ""
    known = {image_at, caption_at, number_at, split_at}
    return Record(
        image=image,
        captions=(text,) if text else (),
        numbers=(number,) if text and number else (),
        split=split_name(cells[split_at]) if 0 <= split_at < len(cells) else "",
        meta={n: cells[i] for i, n in enumerate(columns.names[: len(cells)]) if i not in known},
    )
