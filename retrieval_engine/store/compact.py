"""Rewrites a store without what no item needs any more."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval_engine.durable import sync_directory
from retrieval_engine.records import Feature, Json, Modality
from retrieval_engine.store.begin import lock_store, next_free, own_shards, sweep
from retrieval_engine.store.item_rows import publish_table
from retrieval_engine.store.items import LIVE, SCHEMA, caption_field, live_items
from retrieval_engine.store.keys import KEY_RAW, column_keys, hex_keys
from retrieval_engine.store.manifest import (
    SHARDS,
    FileEntry,
    FileKind,
    Manifest,
    Part,
    read_header,
    read_manifest,
    write_manifest,
)
from retrieval_engine.store.mirror import local_store
from retrieval_engine.store.reader import Store
from retrieval_engine.store.shard import ShardWriter

_PART_BYTES = 256 << 20
_BLOCK_BYTES = 16 << 20
PART_ITEMS = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What a compaction did.

    Attributes:
        rows_before: of images, captions and items in all files.
        rows_after: those that are left.
        bytes_before: length of all files.
        bytes_after: likewise.
    """

    rows_before: int
    rows_after: int
    bytes_before: int
    bytes_after: int

    def to_json(self) -> dict[str, Json]:
        """As `vlre store compact --json` has it."""
        return asdict(self)


def compact_store(path: str | Path, *, part_bytes: int = _PART_BYTES) -> Compacted:
    """Drop the rows that no live item uses: superseded, stale, forgotten and removed ones.

    All is written anew beside the old files, then one manifest takes the place of the other: a
    kill at any moment leaves the one or the other. It takes as much free space as is left at the
    end. The order of the items stays, and so does the ledger.

    Args:
        path: directory of the store.
        part_bytes: most bytes of features in a file.

    Raises:
        StoreNotFound: there is no store.
        StoreDamaged: a row that is needed cannot be read; the store is as it was.
        StoreError: a writer is at work, or the disk refuses.
    """
    path = local_store(path)
    header = read_header(path)
    lock = lock_store(path)
    try:
        own_shards(path)
        before = read_manifest(path)
        sweep(path, before)
        store = Store(path, header, before)
        try:
            after = _Rewriter(store, next_free(path, before), part_bytes).manifest()
            if _rows(after) == _rows(before) and len(after.parts) >= len(before.parts):
                after = before  # nothing to drop, nothing to join
            else:
                sync_directory(path / SHARDS)
                write_manifest(path, after)
        finally:
            store.close()
            sweep(path, read_manifest(path))
    finally:
        lock.release()
    return Compacted(
        rows_before=_rows(before),
        rows_after=_rows(after),
        bytes_before=_bytes(before),
        bytes_after=_bytes(after),
    )


def publish_live(table: Any, path: Path) -> FileEntry:
    """Write live items, with all columns of `SCHEMA` but `removed`, as one whole file."""
    live = table.append_column("removed", pa.array(np.zeros(len(table), bool)))
    return publish_table(live.select(SCHEMA.names).cast(SCHEMA), path)


def _rows(manifest: Manifest) -> int:
    return sum(entry.rows for entry in manifest.files())


def _bytes(manifest: Manifest) -> int:
    return sum(entry.size_bytes for entry in manifest.files())


class _Rewriter:
    """Writes the parts of the new manifest; each holds one file."""

    def __init__(self, store: Store, number: int, part_bytes: int) -> None:
        self._store = store
        self._number = number
        self._part_bytes = part_bytes
        self._parts: list[Part] = []

    def manifest(self) -> Manifest:
        """Everything that live items need, in their order."""
        table = live_items(self._store.path, self._store.manifest, LIVE)
        keys = {
            Modality.IMAGES: column_keys(table["key"]),
            Modality.CAPTIONS: column_keys(caption_field(table["captions"], "key")),
        }
        for modality in Modality:
            for forms, chosen in self._groups(modality, _distinct(keys[modality])):
                self._write_rows(modality, forms, chosen)
        for start in range(0, len(table), PART_ITEMS):
            path = self._path(FileKind.ITEMS, "parquet")
            self._add(publish_live(table.slice(start, PART_ITEMS), path))
        return replace(self._store.manifest, next_part=self._number, parts=tuple(self._parts))

    def _groups(
        self, modality: Modality, keys: NDArray[np.bytes_]
    ) -> Iterator[tuple[list[Feature], NDArray[np.bytes_]]]:
        """Keys by the features they have: a file has all its features for all its rows."""
        forms = list(self._store.features(modality).values())
        if not len(keys) or not forms:
            return
        has = np.stack([self._store.rows(modality, keys, form.name) >= 0 for form in forms], axis=1)
        for pattern in np.unique(has, axis=0)[::-1]:
            if pattern.any():
                names = [form for form, there in zip(forms, pattern, strict=True) if there]
                yield names, keys[(has == pattern).all(axis=1)]

    def _write_rows(
        self, modality: Modality, forms: Sequence[Feature], keys: NDArray[np.bytes_]
    ) -> None:
        row_bytes = sum(int(np.prod(form.shape)) * np.dtype(form.dtype).itemsize for form in forms)
        part_rows = max(1, self._part_bytes // row_bytes)
        block_rows = max(1, _BLOCK_BYTES // row_bytes)
        for start in range(0, len(keys), part_rows):
            some = keys[start : start + part_rows]
            shard = ShardWriter(
                self._path(FileKind(modality), "h5"),
                modality,
                {form.name: form for form in forms},
                self._store.spec,
            )
            try:
                for first in range(0, len(some), block_rows):
                    block = some[first : first + block_rows]
                    shard.append(block, self._read(modality, forms, block))
                self._add(shard.publish())
            except BaseException:
                shard.discard()
                raise

    def _read(
        self, modality: Modality, forms: Sequence[Feature], keys: NDArray[np.bytes_]
    ) -> dict[str, NDArray[np.generic]]:
        rows = self._store.rows(modality, keys)
        return {form.name: self._store.read(modality, form.name, rows) for form in forms}

    def _path(self, kind: FileKind, ending: str) -> Path:
        return self._store.path / SHARDS / f"{kind}-{self._number:05d}.{ending}"

    def _add(self, entry: FileEntry) -> None:
        self._parts.append(Part(number=self._number, files=(entry,)))
        self._number += 1


def _distinct(keys: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    """Each key once, in the order of first appearance."""
    _, first = np.unique(hex_keys(keys), return_index=True)
    chosen: NDArray[np.bytes_] = keys[np.sort(first)]
    return chosen if len(chosen) else np.empty(0, KEY_RAW)
