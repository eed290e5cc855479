"""What a writer need not do again: items that did not change, keys that have their features."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.records import Feature, Item, Modality
from retrieval_engine.store.item_rows import ItemRows, item_state
from retrieval_engine.store.items import any_in_span, caption_field, caption_spans, live_items
from retrieval_engine.store.key_set import KeySet, SortedBytes
from retrieval_engine.store.keys import KEY_RAW, column_keys, fixed_bytes, raw_keys
from retrieval_engine.store.manifest import Manifest
from retrieval_engine.store.rows import RowMap
from retrieval_engine.store.shard_reader import ShardReader

_COLUMNS = ("key", "state", "captions.list.element.key")
_NO_KEY = "0" * 64  # of an item that is gone


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
        self._keys = {m: KeySet(_complete_keys(path, manifest, m, declared[m])) for m in Modality}
        self._optional = {m for m in Modality if not declared[m]}
        self._complete: SortedBytes | None = None
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

    def _complete_states(self) -> SortedBytes:
        table = live_items(self._path, self._manifest, _COLUMNS)
        captions = table["captions"]
        absent = caption_field(captions, "key")
        whole = self._whole(column_keys(table["key"]), column_keys(absent), caption_spans(captions))
        states = [fixed_bytes(chunk) for chunk in table["state"].chunks]
        return SortedBytes(np.concatenate([np.empty(0, "S16"), *states])[whole])

    def _whole(
        self, images: NDArray[np.bytes_], captions: NDArray[np.bytes_], spans: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """(n,) whether items have all features, from their keys and those of all captions."""
        absent = ~self.present(Modality.CAPTIONS, captions)
        return self.present(Modality.IMAGES, images) & ~any_in_span(absent, spans)

    def present(self, modality: Modality, keys: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """(n,) whether each `S32` key has all declared features; true for all if none is."""
        if modality in self._optional:
            return np.ones(len(keys), bool)
        return self._keys[modality].have(keys)

    def keys(self, modality: Modality) -> KeySet:
        """Those that have all declared features, as they are now."""
        return KeySet(self._keys[modality].array())

    def add_keys(self, modality: Modality, keys: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        """Rows of these keys were added to an open part; returns those that were not there."""
        return self._keys[modality].add(keys)

    def drop_keys(self, modality: Modality, blocks: Sequence[NDArray[np.bytes_]]) -> None:
        """Their part was discarded."""
        for block in blocks:
            self._keys[modality].discard(block)

    def settle(self, items: ItemRows) -> None:
        """The open part with these items was committed."""
        gone = np.array(items.columns["removed"], bool)
        keys = raw_keys([key or _NO_KEY for key in items.columns["key"]])
        whole = self._whole(keys, raw_keys(items.captions["key"]), items.spans()) & ~gone
        states = items.columns["state"]
        for (source, item_id), state, kept in zip(items.names(), states, whole, strict=True):
            self._settled.setdefault(source, {})[item_id] = state if kept else b""


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
