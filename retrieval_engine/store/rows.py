"""Where the current row of each key is, over all shards of one modality."""

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.records import Feature
from retrieval_engine.store.keys import KEY_RAW, KeyTable, find_keys, raw_keys
from retrieval_engine.store.manifest import FileEntry
from retrieval_engine.store.shard_reader import ShardReader


class RowMap:
    """Numbers the distinct keys of one modality and finds their features.

    A key's row is its place in the order of first appearance, whatever shards were added since.
    A place is a position in the concatenation of all shards. Where no key was ever written twice,
    the two are the same number.

    Args:
        shards: files of the modality, oldest first.
        reader: reads their keys.
    """

    def __init__(self, shards: list[FileEntry], reader: ShardReader) -> None:
        self.shards = shards
        self.offsets = np.cumsum([0, *(entry.rows for entry in shards)])
        none = np.empty(0, KEY_RAW)
        table = KeyTable(np.concatenate([none, *(raw_keys(reader.keys(e)) for e in shards)]))
        self._sorted = table.sorted
        self._rows, given = table.ranks()
        self._row_of_place = given if table.has_repetitions else None
        self._places: dict[Feature, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self._sorted)

    def find(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """(n,) row of each `S32` key, -1 where it is not known."""
        position = find_keys(self._sorted, keys)
        if not len(self._sorted):
            return position
        return np.where(position < 0, -1, self._rows[position])

    def keys_of(self, chosen: NDArray[np.bool_]) -> NDArray[np.bytes_]:
        """Sorted `S32` keys of the rows that are marked.

        Args:
            chosen: (len(self),) flag for each row.
        """
        return self._sorted[chosen[self._rows]]

    def places(self, feature: Feature) -> NDArray[np.int64]:
        """(len(self),) place of each row's newest features of exactly this form, or -1."""
        if feature not in self._places:
            places = np.full(len(self), -1, np.int64)
            for entry, start in zip(self.shards, self.offsets[:-1], strict=True):
                if entry.features.get(feature.name) == feature:
                    here = np.arange(start, start + entry.rows)
                    rows = here if self._row_of_place is None else self._row_of_place[here]
                    places[rows] = here  # a later shard overwrites an earlier one
            self._places[feature] = places
        return self._places[feature]
