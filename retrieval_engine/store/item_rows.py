"""Rows of the items table before they are a file: columns that grow by an item at a time."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval_engine.durable import partial_of, publish
from retrieval_engine.errors import StoreError
from retrieval_engine.records import Item
from retrieval_engine.store.items import CAPTION, FACTS, SCHEMA
from retrieval_engine.store.manifest import FileEntry, FileKind

_PLAIN = [name for name in SCHEMA.names if name != "captions"]
_FACTS = FACTS.names[1:]
# `json.dumps` makes an encoder for each call where it is given options.
_STATE = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))
_META = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False)


def item_state(item: Item, source: str) -> bytes:
    """16 bytes that differ when anything about an item differs, file time and size included."""
    value = [
        source,
        item.id,
        item.uri,
        item.size_bytes,
        item.mtime_ns,
        item.split,
        [(caption.id, caption.text) for caption in item.captions],
        dict(item.meta),
        *([item.version] if item.version else []),  # states of before there were any stay
    ]
    text = _STATE.encode(value).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


@dataclass(slots=True, kw_only=True)
class ItemRows:
    """Rows of the items table that are not written yet.

    Attributes:
        columns: values by name; all but the captions.
        captions: values by name of all captions, in order.
        counts: number of captions of each row.
    """

    columns: dict[str, list[Any]] = field(default_factory=lambda: {n: [] for n in _PLAIN})
    captions: dict[str, list[str]] = field(default_factory=lambda: {f.name: [] for f in CAPTION})
    counts: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.counts)

    def add(self, source: str, item: Item, key: str) -> None:
        """One live item.

        Raises:
            StoreError: its metadata is no JSON or its strings are no Unicode.
        """
        captions, folder, facts = item.captions, item.folder, item.facts
        try:
            meta = _META.encode(dict(item.meta))
            strings = [item.id, item.uri, item.split, meta, folder or "", facts.camera or ""]
            "".join([*strings, *(caption.id for caption in captions)]).encode()
            keys = [caption.key for caption in captions]
        except (TypeError, ValueError) as error:
            raise StoreError(f"item {item.id!r} of {source} cannot be stored: {error}") from error
        self.captions["id"] += [caption.id for caption in captions]
        self.captions["text"] += [caption.text for caption in captions]
        self.captions["key"] += keys
        self._append(
            *(source, item.id, item.uri, key, item.size_bytes, item.mtime_ns, item.split, meta),
            *(False, item_state(item, source), folder),
            *[getattr(facts, name) for name in _FACTS],
            captions=len(captions),
        )

    def remove(self, source: str, item_id: str) -> None:
        """One item that is gone."""
        plain = (source, item_id, "", "", -1, -1, "", "{}", True, bytes(16))
        self._append(*plain, *[None] * len(FACTS), captions=0)

    def _append(self, *values: Any, captions: int) -> None:
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)
        self.counts.append(captions)

    def names(self) -> Iterator[tuple[str, str]]:
        """Source and id of each row."""
        return zip(self.columns["source"], self.columns["id"], strict=True)

    def spans(self) -> NDArray[np.int64]:
        """(n + 1,) bounds of each row's captions among all."""
        return np.cumsum([0, *self.counts], dtype=np.int64)

    def publish(self, path: Path) -> FileEntry:
        """Write the rows as one whole file.

        Raises:
            StoreError: the disk refuses.
        """
        forms = {f.name: f.type for f in SCHEMA}
        made = {name: pa.array(values, forms[name]) for name, values in self.columns.items()}
        texts = [pa.array(self.captions[f.name], f.type) for f in CAPTION]
        # `pa.array` of NumPy's imports pandas where it is installed: half a second.
        bounds = pa.Array.from_buffers(
            pa.int32(), len(self) + 1, [None, pa.py_buffer(self.spans().astype(np.int32))]
        )
        made["captions"] = pa.ListArray.from_arrays(
            bounds, pa.StructArray.from_arrays(texts, fields=list(CAPTION))
        )
        return publish_table(pa.table([made[n] for n in SCHEMA.names], schema=SCHEMA), path)


def publish_table(table: Any, path: Path) -> FileEntry:
    """Write a table of `SCHEMA` as one whole file.

    Raises:
        StoreError: the disk refuses.
    """
    partial = partial_of(path)
    try:
        with partial.open("xb") as file:
            pq.write_table(
                table,
                file,
                compression="zstd",
                use_dictionary=["source", "split"],
                write_page_checksum=True,
            )
        size_bytes, sha256 = publish(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    return FileEntry(
        name=path.name, kind=FileKind.ITEMS, rows=len(table), size_bytes=size_bytes, sha256=sha256
    )
