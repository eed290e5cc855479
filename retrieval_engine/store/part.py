"""A part: rows that appear in the store together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.records import Failure, Feature, Item, Modality
from retrieval_engine.store.inventory import Inventory
from retrieval_engine.store.item_rows import ItemRows
from retrieval_engine.store.keys import Keys, raw_keys
from retrieval_engine.store.ledger import update_failures
from retrieval_engine.store.manifest import SHARDS, FileEntry
from retrieval_engine.store.shard import Arrays, ShardWriter

Publish = Callable[[int, Sequence[FileEntry]], None]


class PartWriter:
    """Rows that will appear together. Made by `StoreWriter.part`; used by one thread at a time.

    Attributes:
        number: of the part.
        is_open: neither committed nor discarded yet.
    """

    def __init__(
        self,
        path: Path,
        number: int,
        *,
        spec: EncoderSpec,
        features: Mapping[Modality, Sequence[Feature]],
        inventory: Inventory,
        publish: Publish,
    ) -> None:
        self.number = number
        self.is_open = True
        self._path = path
        self._spec = spec
        self._features = features
        self._inventory = inventory
        self._publish = publish
        self._shards: dict[Modality, ShardWriter] = {}
        self._fresh: dict[Modality, list[NDArray[np.bytes_]]] = {m: [] for m in Modality}
        self._items = ItemRows()

    @property
    def images(self) -> int:
        """Image rows added so far."""
        return self._rows(Modality.IMAGES)

    @property
    def captions(self) -> int:
        """Caption rows added so far."""
        return self._rows(Modality.CAPTIONS)

    @property
    def items(self) -> int:
        """Item rows added so far."""
        return len(self._items)

    @property
    def size_bytes(self) -> int:
        """Bytes of features added so far."""
        return sum(shard.size_bytes for shard in self._shards.values())

    def _rows(self, modality: Modality) -> int:
        return self._shards[modality].rows if modality in self._shards else 0

    def add(self, modality: Modality, keys: Keys, arrays: Arrays) -> None:
        """Add features of images or captions; they are copied, and go to disk a few MiB at a time.

        Args:
            modality: which of the two.
            keys: (n,) sha256 of each image's bytes or caption's text, 64 hex digits.
            arrays: (n, *shape) of every declared feature, no more and no less. Floating ones are
                cast to the declared dtype.

        Raises:
            ShapeError: a feature is missing, unknown or of another form.
            StoreError: NaN, infinity or a zero vector; the message names the key.
        """
        raw = raw_keys(keys)
        if modality not in self._shards:
            path = self._path / SHARDS / f"{modality}-{self.number:05d}.h5"
            forms = {form.name: form for form in self._features[modality]}
            self._shards[modality] = ShardWriter(path, modality, forms, self._spec)
        self._shards[modality].append(raw, arrays)
        self._fresh[modality].append(self._inventory.add_keys(modality, raw))

    def add_items(self, source: str, items: Iterable[tuple[Item, str]]) -> None:
        """Add or replace items.

        Args:
            source: name of the source their ids are unique within.
            items: each with the key of its image.

        Raises:
            StoreError: an item cannot be written down; those before it were added.
        """
        for item, key in items:
            self._items.add(source, item, key)

    def remove_items(self, source: str, ids: Iterable[str]) -> None:
        """Mark items as gone."""
        for item_id in ids:
            self._items.remove(source, item_id)

    def commit(
        self, failures: Iterable[Failure] = (), settled: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Make everything added visible, at once.

        Args:
            failures: items that could not be encoded. An item added or removed in this part
                leaves the ledger of failures.
            settled: (source, item id) of others that leave it.

        Raises:
            StoreError: the disk refuses; nothing became visible.
        """
        files = [shard.publish() for shard in self._shards.values()]
        if len(self._items):
            path = self._path / SHARDS / f"items-{self.number:05d}.parquet"
            files.append(self._items.publish(path))
        # The ledger first: after a crash here it is still true, for what it no longer lists was
        # not committed and will be tried again.
        update_failures(self._path, failures, {*self._items.names(), *settled})
        if files:
            self._publish(self.number, files)
        self._inventory.settle(self._items)
        self.is_open = False

    def discard(self) -> None:
        """Forget everything added; nothing happens once the part is committed."""
        if self.is_open:
            for shard in self._shards.values():
                shard.discard()
            for modality, blocks in self._fresh.items():
                self._inventory.drop_keys(modality, blocks)
            self.is_open = False
