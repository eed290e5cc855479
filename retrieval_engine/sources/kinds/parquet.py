"""`parquet:FILES`: local Parquet files with the pictures' bytes in them.

    parquet:data/*.parquet                     all rows; a column `split` is honoured row by row
    parquet:flickr30k.parquet?splits=dataset_flickr30k.json&split=test      splits by id
    parquet:a.parquet?image=jpg&caption=title,alt&id=sha256                 columns by name
    parquet:a.parquet?id=row                   file and row stand for the ids

FILES is a file, a folder, a pattern, or several with commas. The name of a file or of a split never
says which split a row is in: a well-known release of Flickr30k has all 31,783 images in one split
named "test".
"""

import glob
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_engine.errors import SourceError
from retrieval_engine.sources.columns import choose_columns, same_form
from retrieval_engine.sources.reading import MAX_BYTES, one_line
from retrieval_engine.sources.source_name import Options, matching, named_place, place_at
from retrieval_engine.sources.tables import OPTIONS, Cell, TablePart, TableSource
from retrieval_engine.urls import Place

_BATCH_ROWS = 16
_KEPT_BATCHES = 16
_OPEN_FILES = 4
_MOST_PACKED = 100


def open_source(argument: str, options: Mapping[str, str]) -> TableSource:
    """Items in Parquet files.

    Args:
        argument: files, see the module.
        options: `image`, `caption`, `id`, `split`, `splits`.

    Raises:
        UsageError: an option is unknown.
        SourceError: there are no such files, or no columns of pictures and captions.
    """
    given = Options("parquet", options, [key for key in OPTIONS if key != "split_from"])
    files = _files(argument)
    schema = _schema(files[0])
    for file in files[1:]:
        if not same_form(_schema(file), schema):
            raise SourceError(f"{file} has other columns than {files[0]}")
    parts = [named_place(part) for part in argument.split(",")]
    names = ",".join(str(p.absolute() if isinstance(p, Path) else p) for p in parts)
    return TableSource(
        name=f"parquet:{names}",
        kind="parquet",
        parts=[TablePart(path=file, read=_batches) for file in files],
        columns=choose_columns(schema, given, str(files[0])),
        given=given,
        read_bytes=read_bytes,
    )


def _files(argument: str) -> list[Place]:
    files: list[Place] = []
    for part in argument.split(","):
        path = named_place(part)
        if not glob.has_magic(part) and path.is_file():
            found = [path]
        else:
            is_folder = not glob.has_magic(part) and path.is_dir()
            pattern = path / "**" / "*.parquet" if is_folder else path
            found = matching(str(pattern))
            if not found:
                raise SourceError(f"no Parquet file matches {pattern}")
        files += [file.absolute() if isinstance(file, Path) else file for file in found]
    return files


def _schema(path: Place) -> pa.Schema:
    try:
        return pq.read_schema(_opened(path)).remove_metadata()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise SourceError(f"{path} is no whole Parquet file: {one_line(error)}") from error


def _opened(path: Place) -> Any:
    """What pyarrow reads the file from: of an address a block or two at a time."""
    return path if isinstance(path, Path) else path.open()


def _batches(path: Place, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(_opened(path), pre_buffer=False, buffer_size=1 << 20) as file:
            for group in range(file.metadata.num_row_groups):
                _check_sizes(file, group, columns)
            yield from file.iter_batches(batch_size=1024, columns=list(columns))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise SourceError(f"cannot read {path}: {one_line(error)}") from error


def _check_sizes(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> None:
    """Refuse a column of a row group that unpacks to far more than pictures and texts do.

    Pictures hardly shrink and texts shrink to a tenth. The sizes of single columns are asked for only
    where the whole group is suspicious: damaged statistics there would end the process.

    Raises:
        ValueError: it is a bomb or a mistake.
    """
    metadata = file.metadata.row_group(group)
    if metadata.total_byte_size <= MAX_BYTES:
        return
    for number in range(metadata.num_columns):
        chunk = metadata.column(number)
        name = chunk.path_in_schema
        if not any(name == column or name.startswith(f"{column}.") for column in columns):
            continue
        packed, unpacked = chunk.total_compressed_size, chunk.total_uncompressed_size
        if unpacked > MAX_BYTES and unpacked > _MOST_PACKED * packed:
            raise ValueError(f"{name} unpacks from {packed:,} to {unpacked:,} bytes")


def read_bytes(uri: str) -> bytes:
    """The picture in one row.

    Args:
        uri: `parquet:FILE#ROW,COLUMN`; an address only where a person named it.

    Raises:
        SourceError: the file changed or is gone, or the row holds no bytes.
    """
    cell = Cell.of(uri)
    try:
        place = place_at(cell.path)
        # an object that is replaced while it is read says so
        mtime_ns = place.stat().st_mtime_ns if isinstance(place, Path) else 0
        value = _cursor(cell.path, mtime_ns, cell.column).value(cell.row)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise SourceError(f"cannot read {uri}: {one_line(error)}") from error
    return bytes_in(value, uri)


def bytes_in(value: object, uri: str) -> bytes:
    """The picture's bytes in a cell.

    Raises:
        SourceError: the cell is empty, or has only a path.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        return content
    path = value.get("path") if isinstance(value, dict) else None
    raise SourceError(f"no picture bytes in {uri}" + (f"; only the path {path}" if path else ""))


@lru_cache(maxsize=_OPEN_FILES)
def _cursor(path: str, mtime_ns: int, column: str) -> "_Cursor":
    return _Cursor(place_at(path), column)


class _Cursor:
    """Reads pictures of one file; rows near the last one asked for cost no second reading.

    Rows are asked for nearly in order, by several threads. A row group may be the whole file, so
    it is read forward a few rows at a time and only the latest batches are kept. Parquet's smallest
    unit is a page, which pyarrow writes with up to 1,024 rows: that much is held at once.
    """

    def __init__(self, path: Place, column: str) -> None:
        self._file = pq.ParquetFile(_opened(path), pre_buffer=False, buffer_size=1 << 20)
        self._column = column
        groups = self._file.metadata
        self._sizes = [groups.row_group(g).num_rows for g in range(groups.num_row_groups)]
        self._lock = threading.Lock()
        self._recent: deque[tuple[int, pa.Array]] = deque(maxlen=_KEPT_BATCHES)
        self._ahead: Iterator[pa.RecordBatch] = iter(())
        self._next = self._end = 0

    def value(self, row: int) -> object:
        """The cell at this row.

        Raises:
            ValueError: the file has no such row.
        """
        with self._lock:
            for start, cells in self._recent:
                if start <= row < start + len(cells):
                    return cells[row - start].as_py()
            if not self._next <= row < self._end:
                self._start_group(row)
            while True:
                batch = next(self._ahead, None)
                if batch is None:
                    raise ValueError(f"no row {row}; its row group ends before")
                cells = batch.column(0)
                start, self._next = self._next, self._next + len(cells)
                self._recent.append((start, cells))
                if row < self._next:
                    return cells[row - start].as_py()

    def _start_group(self, row: int) -> None:
        start = 0
        for group, size in enumerate(self._sizes):
            if start <= row < start + size:
                _check_sizes(self._file, group, [self._column])
                self._ahead = self._file.iter_batches(
                    batch_size=_BATCH_ROWS, row_groups=[group], columns=[self._column]
                )
                self._next, self._end = start, start + size
                return
            start += size
        raise ValueError(f"no row {row}; the file has {start}")
