"""Reading a store: which rows there are, and their features, gathered in any order."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import FeatureMissing, FingerprintMismatch, StoreError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.records import Failure, Feature, Modality
from retrieval_engine.store.gallery import Gallery
from retrieval_engine.store.growth import added_since
from retrieval_engine.store.items import PUBLIC, choose_split, live_items
from retrieval_engine.store.keys import Keys, raw_keys
from retrieval_engine.store.ledger import read_failures
from retrieval_engine.store.manifest import Header, Manifest, read_header, read_manifest
from retrieval_engine.store.mirror import local_store
from retrieval_engine.store.rows import RowMap
from retrieval_engine.store.shard_reader import ShardReader, check_files

# Up to this many bytes a store's files are hashed when they are opened: 0.2 s at most.
_CHEAP_BYTES = 200_000_000


def open_store(path: str | Path) -> "Store":
    """The store in a directory or behind an address, as its manifest stands now.

    A store being written can be opened; parts committed later are seen by opening it again.

    Raises:
        StoreNotFound: there is none.
        StoreDamaged: its JSON files cannot be understood.
    """
    # The two are read one after the other, and that is enough: rows are served by the form of
    # their features, so a manifest newer than its header shows too little, never something wrong.
    path = local_store(path)
    return Store(path, read_header(path), read_manifest(path))


class Store:
    """Features of one encoder, read-only. Cheap to pickle; safe to use after a fork.

    Args:
        path: its directory.
        header: what `store.json` says.
        manifest: what exists.

    Attributes:
        path: its directory.
        header: what `store.json` says.
        manifest: what exists.
    """

    def __init__(self, path: Path, header: Header, manifest: Manifest) -> None:
        self.path = path
        self.header = header
        self.manifest = manifest
        size_bytes = sum(entry.size_bytes for entry in manifest.files())
        self._reader = ShardReader(path, verify=size_bytes <= _CHEAP_BYTES)
        self._maps: dict[Modality, RowMap] = {}
        self._found: dict[tuple[Modality, str | None], NDArray[np.bool_]] = {}

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle what was seen at opening, so that rows mean the same in every process."""
        return Store, (self.path, self.header, self.manifest)

    @property
    def spec(self) -> EncoderSpec:
        """The encoder that made the features."""
        return self.header.spec

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder, 64 hex digits."""
        return self.header.fingerprint

    def features(self, modality: Modality) -> dict[str, Feature]:
        """The current features of one side, by name."""
        return dict(self.header.features.get(modality, {}))

    def items(self, split: str | None = None) -> Any:
        """The live items in first-seen order.

        Args:
            split: only those of one split.

        Returns:
            A `pyarrow.Table`: source, id, uri, key, size_bytes, mtime_ns, split, captions (list
            of struct id, text, key), meta (a JSON string), and what may be null: folder, taken,
            camera, latitude, longitude, width, height, bytes; see `records.ImageFacts`.

        Raises:
            UsageError: no item has this split.
            StoreDamaged: a table cannot be read.
        """
        return choose_split(live_items(self.path, self.manifest, PUBLIC), split)

    def failures(self) -> list[Failure]:
        """Items that could not be encoded, and why."""
        return read_failures(self.path)

    def count(self, modality: Modality, feature: str | None = None) -> int:
        """Number of distinct keys of one side that have a current feature, or this one."""
        return int(self._present(modality, feature).sum())

    def rows(self, modality: Modality, keys: Keys, feature: str | None = None) -> NDArray[np.int64]:
        """Row of each key, for `read`.

        Args:
            modality: which side.
            keys: sha256 of image bytes or caption texts: (n,) strings of 64 hex digits, or an
                `S64` array of them.
            feature: only rows that have this feature count; by default any current one will do.

        Returns:
            (n,) int64, -1 where the store has no row.
        """
        return self._rows(modality, raw_keys(keys), feature)

    def _rows(
        self, modality: Modality, keys: NDArray[np.bytes_], feature: str | None = None
    ) -> NDArray[np.int64]:
        rows = self._map(modality).find(keys)
        present = self._present(modality, feature)
        if present.all():
            return rows
        return np.where((rows >= 0) & present[rows], rows, -1)

    def _present(self, modality: Modality, feature: str | None) -> NDArray[np.bool_]:
        if (modality, feature) not in self._found:
            table = self._map(modality)
            present = np.zeros(len(table), bool)
            for name in self.features(modality) if feature is None else [feature]:
                present |= table.places(self._feature(modality, name)) >= 0
            self._found[modality, feature] = present
        return self._found[modality, feature]

    def having(
        self, modality: Modality, feature: str, rows: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """(n,) whether each row has a feature; false for row -1.

        Raises:
            FeatureMissing: no row has it.
        """
        return (rows >= 0) & self._present(modality, feature)[rows]

    def read(
        self, modality: Modality, feature: str, rows: "NDArray[np.int64] | slice"
    ) -> NDArray[Any]:
        """Features of rows, in the order asked.

        Args:
            modality: which side.
            feature: its name.
            rows: (n,) row numbers from `rows`, or a slice of them.

        Returns:
            (n, *shape) in the dtype of the feature.

        Raises:
            FeatureMissing: the store has no such feature, or not for all of these rows.
            StoreError: a row number is out of range.
            StoreDamaged: a shard is missing or a checksum fails.
        """
        form = self._feature(modality, feature)
        table = self._map(modality)
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(table)))
        rows = np.asarray(rows, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(table):
            raise StoreError(
                f"rows {rows.min()} to {rows.max()} were asked for, {self.path} has "
                f"{len(table)} rows of {modality}",
                hint="rows come from `Store.rows` or a gallery of this very store; -1 is no row",
            )
        places = table.places(form)[rows]
        missing = int((places < 0).sum())
        if missing:
            raise FeatureMissing(
                f"{missing:,} of {len(rows):,} rows of {modality} in {self.path} have no current "
                f"{feature}",
                hint=f"encode its source again with `EncodeOptions(features=({feature!r},))`",
            )
        out = np.empty((len(rows), *form.shape), np.dtype(form.dtype))
        self._gather(table, feature, places, out)
        return out

    def _gather(
        self, table: RowMap, feature: str, places: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        shard = np.searchsorted(table.offsets, places, side="right") - 1
        if (np.diff(shard) >= 0).all():
            for number, start, stop in _runs(shard):
                local = places[start:stop] - table.offsets[number]
                self._reader.gather(table.shards[number], feature, local, out[start:stop])
            return
        order = np.argsort(shard, kind="stable")
        for number, start, stop in _runs(shard[order]):
            chosen = order[start:stop]
            local = places[chosen] - table.offsets[number]
            block = np.empty((len(chosen), *out.shape[1:]), out.dtype)
            self._reader.gather(table.shards[number], feature, local, block)
            out[chosen] = block

    def check_fingerprint(self, what: str, seen: str) -> None:
        """Refuse a thing that was made under another encoder.

        Args:
            what: the thing, for the message, e.g. `index indices/built/default`.
            seen: the fingerprint it carries.

        Raises:
            FingerprintMismatch: the fingerprints differ.
        """
        if seen != self.fingerprint:
            raise FingerprintMismatch(what, seen=seen, expected=self.fingerprint)

    def verify(self) -> list[str]:
        """Read and hash every file; one line for each problem found, none when all is well."""
        return check_files(self.path, self.manifest)

    def gallery(self, split: str | None = None) -> Gallery:
        """The live items that have features, and their captions.

        Args:
            split: only the items of one split.

        Raises:
            UsageError: no item has this split.
        """
        return Gallery.of(self, split)

    def since(self, files: Sequence[str]) -> "Store | None":
        """What was added to it after some time.

        Args:
            files: sha256 of each of its files at that time, in order.

        Returns:
            A store of the newer parts alone; None where other files are before them, or items were
            removed.
        """
        newer = added_since(self.path, self.manifest, files)
        return None if newer is None else self._holding(newer)

    def _holding(self, manifest: Manifest) -> "Store":
        """The same store with these parts alone."""
        return Store(self.path, self.header, manifest)

    def close(self) -> None:
        """Close open files; reading opens them again."""
        self._reader.close()

    def _map(self, modality: Modality) -> RowMap:
        if modality not in self._maps:
            self._maps[modality] = RowMap(self.manifest.files(modality), self._reader)
        return self._maps[modality]

    def _feature(self, modality: Modality, name: str) -> Feature:
        current = self.features(modality)
        if name not in current:
            if self.spec.family == "external" and name == "itc":
                raise FeatureMissing(
                    f"{self.path} has no itc: its image and text vectors were imported with "
                    "different widths, and need a head",
                    hint=f"`train_head(store={str(self.path)!r}, out=DIR)`, then give `head=DIR`",
                )
            raise FeatureMissing(
                f"{self.path} has no {name} of {modality}; it has: {', '.join(current) or 'none'}",
                hint=f"encode again with `EncodeOptions(features=({name!r},))`",
            )
        return current[name]


def _runs(values: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(value, start, stop) of each run of equal values."""
    if not len(values):
        return
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for start, stop in pairwise(edges):
        yield int(values[start]), start, stop
