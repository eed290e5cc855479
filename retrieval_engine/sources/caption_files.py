"""Files that say which captions an image has, in every common form.

    name.jpg#0<TAB>caption                        Flickr8k.token.txt, results_20130124.token
    name.jpg|caption     name.jpg| 0| caption     with or without a header line
    name.jpg,caption     name.jpg,0,caption       CSV with its quoting; also with ; or tabs
    {"image": "name.jpg", "caption": "…"}         .jsonl, or a list of these in .json
    {"name.jpg": ["…", "…"]}                      .json

All may be gzipped. UTF-8, UTF-16 or UTF-32, with or without a byte order mark, any newlines.
"""

import csv
from collections.abc import Iterator

from retrieval_engine.errors import SourceError
from retrieval_engine.sources.annotation import Fields, Record, named_record, record_of
from retrieval_engine.sources.caption_tables import table_records
from retrieval_engine.sources.json_stream import elements, is_list, pairs
from retrieval_engine.sources.reading import UNREADABLE, lines, one_line, open_text, parse_json
from retrieval_engine.urls import Place

_OTHER_KINDS = frozenset(("images", "annotations", "info", "licenses", "categories"))


def read_records(path: Place, fields: Fields | None = None) -> Iterator[Record]:
    """Every record of the file, in its order, one at a time; an image may come several times.

    Args:
        path: a .json, .jsonl or a text file with one caption in each line; also gzipped.
        fields: columns or keys of the image and of its captions, where they have no usual name.

    Raises:
        SourceError: the file cannot be read or a line makes no sense; the message has its number.
    """
    form = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    fields = fields or Fields()
    try:
        if form == "json":
            yield from _objects(path, fields) if is_list(path) else _by_name(path, fields)
        elif form in {"jsonl", "ndjson"}:
            yield from _json_lines(path, fields)
        else:
            yield from table_records(path, fields)
    except (*UNREADABLE, csv.Error) as error:
        raise SourceError(f"cannot read {path}: {one_line(error)}") from error


def _objects(path: Place, fields: Fields) -> Iterator[Record]:
    for position, entry in enumerate(elements(path), 1):
        yield record_of(entry, f"{path}: object {position}", fields)


def _by_name(path: Place, fields: Fields) -> Iterator[Record]:
    """Of an object whose keys are the images' names."""
    for name, value in pairs(path):
        if name in _OTHER_KINDS:
            raise SourceError(
                f"{path}: expected a list of objects, one for each image, or an object by image; "
                f"found the key {name!r}",
                hint="read COCO's files as coco:FILE and Karpathy's as karpathy:FILE",
            )
        entry = value if isinstance(value, dict) else {"captions": value}
        yield named_record(name, entry, fields)


def _json_lines(path: Place, fields: Fields) -> Iterator[Record]:
    with open_text(path) as stream:
        for number, line in enumerate(lines(stream, path), 1):
            if line.strip():
                entry = parse_json(line, f"{path}:{number}")
                yield record_of(entry, f"{path}:{number}", fields)
