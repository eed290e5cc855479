"""The items table: what is known about each image, as Parquet beside the shards."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval_engine import arrow as pc
from retrieval_engine.errors import StoreDamaged, UsageError
from retrieval_engine.store.manifest import (
    REPAIR_HINT,
    SHARDS,
    FileEntry,
    FileKind,
    Manifest,
)
from retrieval_engine.store.shard_reader import have_file, is_missing

# 64-bit offsets, so that a table of a hundred million captions can still be one array.
CAPTION = pa.struct(
    [("id", pa.large_string()), ("text", pa.large_string()), ("key", pa.large_string())]
)
# What people ask for, beside what must be known: null where it is not known, and absent from the
# files that were written before there were such columns.
FACTS = pa.schema(
    [
        ("folder", pa.large_string()),
        ("taken", pa.timestamp("us")),
        ("camera", pa.large_string()),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("source", pa.large_string()),
        ("id", pa.large_string()),
        ("uri", pa.large_string()),
        ("key", pa.large_string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("split", pa.large_string()),
        ("captions", pa.list_(CAPTION)),
        ("meta", pa.large_string()),
        ("removed", pa.bool_()),
        ("state", pa.binary(16)),
        *FACTS,
    ]
)
LIVE = [name for name in SCHEMA.names if name != "removed"]
PUBLIC = [name for name in SCHEMA.names if name not in ("removed", "state")]


def live_items(root: Path, manifest: Manifest, columns: Sequence[str]) -> Any:
    """The latest row of every item that is not removed, in first-seen order.

    Args:
        root: directory of the store.
        manifest: what exists.
        columns: names out of `SCHEMA`; parts of captions as `captions.list.element.key`.

    Returns:
        A `pyarrow.Table` with those columns.

    Raises:
        StoreDamaged: a table is missing, has another length, or a checksum fails.
        StoreChanged: the store was overwritten or compacted since the manifest was read.
    """
    identity = ["source", "id", "removed"]
    wanted = [*columns, *(name for name in identity if name not in columns)]
    tables = [read_items(root, entry, wanted) for entry in manifest.files(FileKind.ITEMS)]
    tops = list(dict.fromkeys(name.partition(".")[0] for name in columns))
    if not tables:
        return SCHEMA.empty_table().select(tops)
    table = pa.concat_tables(tables)
    chosen = _latest(table)
    return (table if chosen is None else table.take(chosen)).select(tops)


def _latest(table: Any) -> NDArray[np.int64] | None:
    # None where every row stays: no copy is made then. Dictionary codes are ten times faster to
    # group by than the strings themselves.
    ids = pc.dictionary_encode(table["id"]).combine_chunks()
    if len(ids.dictionary) == len(table) and not pc.any(table["removed"]).as_py():
        return None
    item = item_numbers(table)
    rows = np.arange(len(table))
    first, last = (np.empty(item.max(initial=-1) + 1, np.int64) for _ in range(2))
    first[item[::-1]] = rows[::-1]  # of equal indices, the one assigned last stays
    last[item] = rows
    chosen: NDArray[np.int64] = last[np.argsort(first)]
    removed = _numbers(pc.cast(table["removed"], pa.uint8())).astype(np.bool_)
    live: NDArray[np.int64] = chosen[~removed[chosen]]
    return live


def item_numbers(table: Any) -> NDArray[np.int64]:
    """(n,) the same number for rows of the same `source` and `id`, and for no others."""
    ids = pc.dictionary_encode(table["id"]).combine_chunks()
    sources = pc.dictionary_encode(table["source"]).combine_chunks()
    pairs = _numbers(sources.indices).astype(np.int64) * len(ids.dictionary)
    return np.unique(pairs + _numbers(ids.indices), return_inverse=True)[1]


def _numbers(column: Any) -> NDArray[Any]:
    # Arrow's own `to_numpy` imports pandas where it is installed: a tenth of a second.
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.from_dlpack(array)


def read_items(root: Path, entry: FileEntry, columns: Sequence[str]) -> Any:
    """Columns of one file of the table; see `live_items`."""
    path = root / SHARDS / entry.name
    try:
        # In memory of Arrow's own: its threads may let go of the last column after the table is
        # here, and bytes of Python's, let go of while the interpreter ends, would end it in SIGABRT.
        with pa.OSFile(str(have_file(root, entry))) as opened:
            data = opened.read_buffer()
        if data.size != entry.size_bytes:
            raise OSError(f"{data.size} bytes, the manifest says {entry.size_bytes}")
        # The footer has no checksum of its own. Hashing takes a tenth of the time of decoding.
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise OSError("its sha256 is another than the manifest's")
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            table = file.read(columns=list(columns))
        for name in FACTS.names:
            if name in columns and name not in table.schema.names:  # written before there were any
                table = table.append_column(
                    FACTS.field(name), pa.nulls(len(table), FACTS.field(name).type)
                )
        for name in dict.fromkeys(column.partition(".")[0] for column in columns):
            if name != "captions" and table.schema.field(name).type != SCHEMA.field(name).type:
                raise OSError(f"{name} is {table.schema.field(name).type}")
    except FileNotFoundError as error:
        raise is_missing(root, entry) from error
    except (OSError, pa.ArrowException, KeyError) as error:
        raise StoreDamaged(f"{path} is damaged: {error}", hint=REPAIR_HINT) from error
    if len(table) != entry.rows:
        raise StoreDamaged(
            f"{path} has {len(table)} rows, the manifest says {entry.rows}", hint=REPAIR_HINT
        )
    return table


def choose_split(table: Any, split: str | None) -> Any:
    """The rows of one split.

    Args:
        table: a table with a column `split`.
        split: its name, or None for all rows.

    Raises:
        UsageError: no item has this split; the message lists those there are.
    """
    if split is None:
        return table
    chosen = table.filter(equal_to(table["split"], split))
    if not len(chosen):
        known = ", ".join(f"{name or 'none'} ({count:,})" for name, count in splits(table).items())
        raise UsageError(f"no item has split {split!r}; splits here: {known or 'no items at all'}")
    return chosen


def equal_to(column: Any, text: str) -> Any:
    """Which of n strings are this one: n booleans of Arrow.

    Trap: `pc.equal`, like `pa.array` and `pa.scalar`, imports pandas where that is installed.
    """
    known = pc.unique(column)
    at = [row for row, other in enumerate(known.to_pylist()) if other == text]
    return pc.is_in(column, value_set=known.slice(at[0] if at else 0, len(at)))


def splits(table: Any) -> dict[str, int]:
    """Number of items of each split, largest first."""
    counts = pc.value_counts(table["split"]).to_pylist()
    return {c["values"]: c["counts"] for c in sorted(counts, key=lambda c: -c["counts"])}


def sources(table: Any) -> dict[str, int]:
    """Number of items of each source, in the order of their first items."""
    counts = pc.value_counts(table["source"]).to_pylist()
    return {count["values"]: count["counts"] for count in counts}


def column_among(column: Any, names: Iterable[str]) -> NDArray[np.bool_]:
    """(n,) whether each string of a column is one of some."""
    there = pc.is_in(column, value_set=pa.array(list(names), pa.large_string()))
    return _numbers(pc.cast(there, pa.uint8())).astype(np.bool_)


def as_indices(places: NDArray[np.int64]) -> Any:
    """Places for Arrow's `take`; `pa.array` imports pandas where it is installed: half a second."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(places, np.int64))]
    return pa.Array.from_buffers(pa.int64(), len(places), buffers)


def caption_spans(column: Any) -> NDArray[np.int64]:
    """(n + 1,) bounds of each item's captions in the flattened caption column."""
    lengths = _numbers(pc.list_value_length(column))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def caption_field(column: Any, name: str) -> Any:
    """`id`, `text` or `key` of all captions, in order, without a copy."""
    chunks = [pc.struct_field(chunk.flatten(), name) for chunk in column.chunks]
    return pa.chunked_array(chunks, CAPTION.field(name).type)


def any_in_span(marked: NDArray[np.bool_], spans: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each span, whether one of its elements is marked; empty spans have none.

    Args:
        marked: (m,) flags.
        spans: (n + 1,) bounds.
    """
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(marked, dtype=np.int64)])
    found: NDArray[np.bool_] = total[spans[1:]] > total[spans[:-1]]
    return found
