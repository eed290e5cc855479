"""Items from tables with one picture in each row: the rows read, and which split each is in."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa

from retrieval_engine import arrow as pc
from retrieval_engine.errors import SourceError
from retrieval_engine.records import Item, Json
from retrieval_engine.sources.annotated import merge
from retrieval_engine.sources.annotation import Record, captions_of
from retrieval_engine.sources.caption_files import read_records
from retrieval_engine.sources.cleaning import CleanedSource
from retrieval_engine.sources.columns import Columns, plain_type
from retrieval_engine.sources.image_folder import state_of
from retrieval_engine.sources.json_stream import elements, is_list
from retrieval_engine.sources.source_name import Options, existing_file, named_place, split_name
from retrieval_engine.urls import Place, State

_UNIQUE = "name a column of unique ids with `?id=COLUMN`, or number the rows with `?id=row`"
OPTIONS = ("image", "caption", "id", "split", "splits", "split_from")
"""Options that every source of tables knows."""
_CELL = re.compile(r"(?:([^/,]*)/)?(\d+),(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePart:
    """One file of a table.

    Attributes:
        path: the file, absolute.
        read: gives its rows, of the columns asked for alone, a batch at a time.
        split: what all its rows are in, or empty.
        table: name of the table in a file that holds several, such as a database; else empty.
    """

    path: Place
    read: Callable[[Any, Sequence[str]], Iterator[pa.RecordBatch]]
    split: str = ""
    table: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Where a picture is in a table; as a uri `KIND:FILE#ROW,COLUMN` or `…#TABLE/ROW,COLUMN`.

    Attributes:
        path: the file.
        row: number of the row, from 0.
        column: name of the column.
        table: name of the table in a file that holds several, else empty.
    """

    path: str
    row: int
    column: str
    table: str = ""

    def uri(self, kind: str) -> str:
        """The uri of the cell in a source of this kind."""
        table = f"{quote(self.table, safe='')}/" if self.table else ""
        return f"{kind}:{self.path}#{table}{self.row},{self.column}"

    @classmethod
    def of(cls, uri: str) -> "Cell":
        """The cell that a uri names.

        Raises:
            SourceError: it names none.
        """
        path, _, place = uri.partition(":")[2].rpartition("#")
        if (found := _CELL.fullmatch(place)) is None:
            raise SourceError(f"{uri} names no cell of a table")
        table, row, column = found.groups(default="")
        return cls(path=path, row=int(row), column=column, table=unquote(table))


class TableSource(CleanedSource):
    """Items from the rows of a table; rows that follow each other with one id are one item.

    Such rows must have the same picture: else one would take the other's captions.

    Args:
        name: see `Source`.
        kind: the uri's first part; `KIND:FILE#ROW,COLUMN` is a picture.
        parts: the table's files in order.
        read_bytes: gives the picture under a uri.
        columns: which column is what.
        given: `split`, and `splits`: a file that says which split each id is in.
    """

    def __init__(
        self,
        *,
        name: str,
        kind: str,
        parts: Sequence[TablePart],
        columns: Columns,
        given: Options,
        read_bytes: Callable[[str], bytes],
    ) -> None:
        super().__init__(name, given.split(), is_partial=bool(given.text("name")))
        self._kind = kind
        self._read_bytes = read_bytes
        self._parts = parts
        self._columns = columns
        lists = given.text("splits")
        self._splits = split_table(named_place(lists)) if lists else None

    def count(self) -> int:
        """Number of items; reads the ids and splits alone."""
        columns = replace(self._columns, captions=(), meta=())
        splits = (split for _, split, _ in self._rows(columns))
        return sum(not self._split or split == self._split for split in splits)

    def _items(self) -> Iterator[Item]:
        self.notes.clear()
        if not (self._columns.id or self._columns.has_path or self._columns.by_row):
            self.notes.append("the table has no ids; file and row stand for them")
        seen: set[str] = set()
        unlisted = 0
        for item_id, split, rows in self._rows(self._columns):
            if item_id in seen:
                raise SourceError(
                    f"{self.name}: id {item_id!r} comes back at {rows[0].where}", hint=_UNIQUE
                )
            seen.add(item_id)
            self._check_one_picture(item_id, rows)
            unlisted += self._splits is not None and not split
            item = merge([row.record for row in rows], item_id=item_id)
            state = rows[0].state
            yield replace(
                item,
                uri=rows[0].uri,
                split=split,
                mtime_ns=state.mtime_ns,
                version=state.version,
            )
        if unlisted:
            self.notes.append(f"{unlisted:,} of {len(seen):,} ids are in no split of the list")

    def _check_one_picture(self, item_id: str, rows: Sequence["_Row"]) -> None:
        first: bytes | None = None
        for row in rows if len(rows) > 1 else ():
            try:
                data = self._read_bytes(row.uri)
            except SourceError:
                continue  # the first row's picture is the item's: it fails where it is read
            first = data if first is None else first
            if data != first:
                raise SourceError(
                    f"{self.name}: id {item_id!r} has another picture at {row.where}", hint=_UNIQUE
                )

    def _rows(self, columns: Columns) -> Iterator[tuple[str, str, list["_Row"]]]:
        """Id, split and rows of each item."""
        for item_id, group in groupby(self._each(columns), key=lambda row: row.record.image):
            rows = list(group)
            split = merge([row.record for row in rows]).split
            if self._splits is not None:
                split = _listed(self._splits, item_id)
            yield item_id, split, rows

    def _each(self, columns: Columns) -> Iterator["_Row"]:
        for part in self._parts:
            state = state_of(part.path)
            row = 0
            for batch in part.read(part.path, columns.light):
                for values in _values(batch, columns):
                    where = f"{part.path}, row {row}"
                    cell = Cell(
                        path=str(part.path), row=row, column=columns.image, table=part.table
                    )
                    yield _Row(
                        record=_record(values, columns, f"{part.path.stem}-{row}", where, part),
                        uri=cell.uri(self._kind),
                        state=state,
                        where=where,
                    )
                    row += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    record: Record
    uri: str
    state: State
    where: str


def _values(batch: pa.RecordBatch, columns: Columns) -> Iterable[dict[str, Json]]:
    """The light columns of each row; the picture's path under the name of its column."""
    names = [name for name in columns.light if name in batch.schema.names]
    lists = [_cells(batch.column(name)) for name in names]
    if columns.has_path:
        path = _cells(pc.struct_field(batch.column(columns.image), "path"))
        names, lists = [*names, columns.image], [*lists, path]
    if not lists:
        return [{} for _ in range(len(batch))]
    return [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]


def _cells(column: pa.Array) -> list[Json]:
    """The cells of a column as Python values; bytes that are no UTF-8 become U+FFFD."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(plain_type(column.type))
    try:
        values: list[Json] = column.to_pylist()
    except UnicodeDecodeError:
        as_bytes = column.cast(_without_text(column.type)).to_pylist()
        values = [_decoded(value) for value in as_bytes]
    return values


def _without_text(kind: pa.DataType) -> pa.DataType:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return pa.large_list(pa.large_binary()) if is_list else pa.large_binary()


def _decoded(value: object) -> Json:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None


def _record(
    values: Mapping[str, Json], columns: Columns, fallback: str, where: str, part: TablePart
) -> Record:
    identity = None if columns.by_row else values.get(columns.id or columns.image)
    said = [captions_of(values.get(name)) for name in columns.captions]
    fault = next((fault for _, fault in said if fault), "")
    return Record(
        image=fallback if identity in (None, "") else str(identity),
        captions=tuple(text for texts, _ in said for text in texts),
        split=split_name(str(values.get(columns.split) or "")) if columns.split else part.split,
        meta={name: values[name] for name in columns.meta if name in values},
        fault=f"{where}: {fault}" if fault else "",
    )


def split_table(path: Place) -> dict[str, str]:
    """The split of each image that a file names.

    Args:
        path: a Karpathy file, or any caption file with a `split`; also `name,split` lines with
            that header.

    Raises:
        SourceError: the file is not there, cannot be read, or names no split.
    """
    path = existing_file(path)
    if ".json" in path.suffixes and not is_list(path):
        entries = (entry for entry in elements(path, "images") if isinstance(entry, dict))
        pairs = [(str(e.get("filename")), split_name(str(e.get("split") or ""))) for e in entries]
    else:
        pairs = [(record.image, record.split) for record in read_records(path)]
    table: dict[str, str] = {}
    for name, split in pairs:
        if split and table.setdefault(name, split) != split:
            raise SourceError(f"image {name} is in two splits: {table[name]} and {split}")
    if not table:
        raise SourceError(f"{path} names no split of any image")
    return table


def _listed(splits: Mapping[str, str], item_id: str) -> str:
    """The split of an id, which may lack the list's folder or ending, or have one of its own."""
    name = item_id.rpartition("/")[2]
    return next((splits[key] for key in (item_id, name, f"{name}.jpg") if key in splits), "")
