"""What a writer need not do again: items that did not change, keys that have their features."""

import threading
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.records import Feature, Item, Modality
from retrieval_engine.store.items import (
    any_in_span,
    caption_field,
    caption_spans,
    item_state,
    live_items,
)
from retrieval_engine.store.keys import KEY_RAW, column_keys, find_keys, raw_keys
from retrieval_engine.store.manifest import Manifest
from retrieval_engine.store.rows import RowMap
from retrieval_engine.store.shard_reader import ShardReader

_COLUMNS = ("key", "state", "captions.list.element.key")


class Inventory:
    """Answers look-ups against a store as it was opened and what was added since.

    Args:
        path: directory of the store.
        manifest: what existed at opening.
        declared: the features a row must have to count. Where none are declared for a modality,
            every key of it counts as present.
    """

    def __init__(
        self, path: Path, manifest: Manifest, declared: Mapping[Modality, Sequence[Feature]]
    ) -> None:
        self._path = path
        self._manifest = manifest
        self._turn = threading.Lock()
        self._keys = {m: _complete_keys(path, manifest, m, declared[m]) for m in Modality}
        self._optional = {m for m in Modality if not declared[m]}
        # Dictionaries of plain values, which the garbage collector never walks through: a set or
        # a dictionary of tuples it does, at ten million items for a second each time.
        self._added: dict[Modality, dict[bytes, None]] = {m: {} for m in Modality}
        self._complete: set[bytes] | None = None
        self._settled: dict[str, dict[str, bytes]] = {}

    def unchanged(self, item: Item, source: str) -> bool:
        """See `StoreWriter.unchanged`."""
        state = item_state(item, source)
        settled = self._settled.get(source, {}).get(item.id)
        if settled is not None:
            return settled == state
        if self._complete is None:
            self._complete = self._complete_states()
        return state in self._complete

    def _complete_states(self) -> set[bytes]:
        table = live_items(self._path, self._manifest, _COLUMNS)
        whole = self.present(Modality.IMAGES, column_keys(table["key"]))
        captions = table["captions"]
        absent = ~self.present(Modality.CAPTIONS, column_keys(caption_field(captions, "key")))
        whole &= ~any_in_span(absent, caption_spans(captions))
        # Not `filter`: given an array of NumPy, pyarrow imports pandas, half a second.
        return set(compress(table["state"].to_pylist(), whole.tolist()))

    def present(self, modality: Modality, keys: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """(n,) whether each `S32` key has all declared features; true for all if none is."""
        if modality in self._optional:
            return np.ones(len(keys), bool)
        found = find_keys(self._keys[modality], keys) >= 0
        added = self._added[modality]
        if added:
            unsure = np.flatnonzero(~found)
            found[unsure] = [piece in added for piece in _pieces(keys[unsure])]
        return found

    def keys(self, modality: Modality) -> NDArray[np.bytes_]:
        """Sorted `S32` keys that have all declared features."""
        with self._turn:
            added = np.frombuffer(b"".join(self._added[modality]), KEY_RAW)
        return np.sort(np.concatenate([self._keys[modality], added]))

    def add_keys(self, modality: Modality, keys: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        """Rows of these keys were added to an open part; returns those that were not there."""
        fresh = keys[~self.present(modality, keys)]
        with self._turn:
            self._added[modality].update(dict.fromkeys(_pieces(fresh)))
        return fresh

    def drop_keys(self, modality: Modality, blocks: Sequence[NDArray[np.bytes_]]) -> None:
        """Their part was discarded."""
        with self._turn:
            for block in blocks:
                for piece in _pieces(block):
                    self._added[modality].pop(piece, None)

    def settle(self, items: Mapping[tuple[str, str], tuple[Item, str] | None]) -> None:
        """The open part was committed.

        Args:
            items: by source and id, each item and its image key, or None where it is gone.
        """
        for (source, item_id), entry in items.items():
            state = b"" if entry is None else self._state(source, *entry)
            self._settled.setdefault(source, {})[item_id] = state

    def _state(self, source: str, item: Item, key: str) -> bytes:
        whole = self.present(Modality.IMAGES, raw_keys([key])).all()
        if whole and item.captions:
            whole = self.present(Modality.CAPTIONS, raw_keys([c.key for c in item.captions])).all()
        return item_state(item, source) if whole else b""


def _complete_keys(
    path: Path, manifest: Manifest, modality: Modality, forms: Sequence[Feature]
) -> NDArray[np.bytes_]:
    if not forms:
        return np.empty(0, KEY_RAW)
    reader = ShardReader(path)
    table = RowMap(manifest.files(modality), reader)
    reader.close()
    complete = np.ones(len(table), bool)
    for form in forms:
        complete &= table.places(form) >= 0
    return table.keys_of(complete)


def _pieces(keys: NDArray[np.bytes_]) -> list[bytes]:
    # Not `tolist`: NumPy would drop the zero bytes that a key may end with.
    data, width = keys.tobytes(), KEY_RAW.itemsize
    return [data[i : i + width] for i in range(0, len(data), width)]
