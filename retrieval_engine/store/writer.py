"""Writing a store: one writer, parts that appear whole or not at all."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.durable import sync_directory
from retrieval_engine.errors import StoreError, UsageError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.locks import FileLock
from retrieval_engine.records import Failure, Feature, Item, JobShard, Modality
from retrieval_engine.store.begin import (
    has_parts,
    lock_store,
    make_directory,
    next_free,
    own_shards,
    prepare,
    sweep,
    unmake,
)
from retrieval_engine.store.inventory import Inventory
from retrieval_engine.store.items import equal_to, live_items
from retrieval_engine.store.job_shards import Reached, ShardPass, with_passes
from retrieval_engine.store.key_set import KeySet
from retrieval_engine.store.keys import Keys, raw_keys
from retrieval_engine.store.ledger import read_failures, update_failures
from retrieval_engine.store.manifest import (
    HEADER,
    SHARDS,
    FileEntry,
    Header,
    Manifest,
    Part,
    read_header,
    read_manifest,
    write_manifest,
)
from retrieval_engine.store.mirror import local_store
from retrieval_engine.store.moved import COLUMNS, moved_items
from retrieval_engine.store.part import PartWriter
from retrieval_engine.store.shard import KEY


class StoreWriter:
    """Adds to a store. One at a time; readers are never in its way.

    Use `open`, and as a context manager: leaving it gives the lock back and forgets uncommitted
    parts; a store that was made for a run that failed before its first commit goes again. Parts may be filled and committed in another thread than the one that asks what is
    unchanged, but one at a time and in order.

    Attributes:
        path: directory of the store.
        spec: the encoder whose features are added.
        features: form of the features that each added image and caption has.
    """

    def __init__(
        self,
        path: Path,
        lock: FileLock,
        header: Header,
        features: Mapping[Modality, Sequence[Feature]],
    ) -> None:
        self.path = path
        self.spec = header.spec
        self.features = {m: tuple(features.get(m, ())) for m in Modality}
        self._lock = lock
        self._manifest = read_manifest(path)
        self._made: tuple[Path, ...] | None = None  # folders made for a store that is new
        self._parts: list[PartWriter] = []
        sweep(path, self._manifest)
        self._next_part = next_free(path, self._manifest)
        self._inventory = Inventory(path, self._manifest, self.features)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        spec: EncoderSpec,
        features: Mapping[Modality, Sequence[Feature]],
        overwrite: bool = False,
        adopt_spec: bool = False,
    ) -> "StoreWriter":
        """Open a store for writing; make it where there is none.

        Args:
            path: its directory, or an address.
            spec: the encoder whose features will be added.
            features: form of the features each added image and caption will have. What is
                `unchanged` or `present` is judged by these.
            overwrite: throw away what the store holds.
            adopt_spec: let the store belong to `spec` from now on. Features of any other form
                than declared here are no longer served; those that did not change stay.

        Raises:
            FingerprintMismatch, ShapeError: what it holds is another encoder's, or of another form.
            StoreError: another writer is at work, or the directory holds something else.
        """
        path = local_store(path)
        forms = {m: {form.name: form for form in features.get(m, ())} for m in Modality}
        if any(KEY in by_name for by_name in forms.values()):
            raise UsageError(f"no feature can be called {KEY!r}: shards keep the cache keys there")
        made = make_directory(path)
        lock = lock_store(path)
        is_new = not (path / HEADER).exists()
        try:
            header = prepare(path, spec, forms, overwrite=overwrite, adopt=adopt_spec)
            writer = cls(path, lock, header, features)
        except BaseException:
            if is_new and not has_parts(path):
                unmake(path, made)
            lock.release()
            raise
        writer._made = made if is_new else None
        return writer

    @classmethod
    def reopen(cls, path: str | Path) -> "StoreWriter":
        """Open a store to take items out of it, whatever its encoder.

        Raises:
            StoreNotFound: there is none.
            StoreError: another writer is at work.
        """
        path = local_store(path)
        header = read_header(path)
        lock = lock_store(path)
        try:
            own_shards(path)
            return cls(path, lock, header, {})
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        for part in self._parts:
            part.discard()
        if kind is not None and self._made is not None and self.is_empty:
            unmake(self.path, self._made)
        self._lock.release()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is committed, no failure either."""
        return not self._manifest.parts and not self.failures()

    def close(self) -> None:
        """Forget uncommitted parts and let others write."""
        self.__exit__(None)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder."""
        return self.spec.fingerprint

    @property
    def manifest(self) -> Manifest:
        """What is committed."""
        return self._manifest

    def unchanged(self, item: Item, source: str) -> bool:
        """Whether nothing need be done for an item: no byte of its image has to be read.

        True when the store knows the item with the same uri, size, time, split, captions and
        metadata, and holds every declared feature of its image and of all its captions.
        """
        return self._inventory.unchanged(item, source)

    def present(self, modality: Modality, keys: Keys) -> NDArray[np.bool_]:
        """(n,) whether each key has all declared features, uncommitted rows included."""
        return self._inventory.present(modality, raw_keys(keys))

    def keys(self, modality: Modality) -> KeySet:
        """Keys that have all declared features, ascending, uncommitted rows included: as of now."""
        return self._inventory.keys(modality)

    def failures(self) -> list[Failure]:
        """The ledger as it stands."""
        return read_failures(self.path)

    def part(self) -> PartWriter:
        """Begin the next part."""
        self._parts = [part for part in self._parts if part.is_open]
        part = PartWriter(
            self.path,
            self._next_part,
            spec=self.spec,
            features=self.features,
            inventory=self._inventory,
            publish=self._publish,
        )
        self._next_part += 1
        self._parts.append(part)
        return part

    def remove(self, source: str, ids: Iterable[str]) -> None:
        """Mark items as gone, in a part of their own. Their features stay for others' use."""
        part = self.part()
        part.remove_items(source, ids)
        part.commit()

    def begin_shard(self, source: str, shard: JobShard) -> None:
        """Write down that a share of a job goes into this store, before anything of it does.

        Raises:
            StoreError: the store holds another share.
        """
        for other in (entry for entry in self._manifest.shards if entry.shard != shard):
            raise StoreError(
                f"{self.path} holds shard {other.shard} of {other.source}, not {shard}",
                hint="give each shard a `store` of its own, and merge them at the end",
            )
        self._reach(source, shard, Reached.BEGUN)

    def finish(
        self,
        source: str,
        *,
        failures: Iterable[Failure] = (),
        seen: Collection[str] | None = None,
        shard: JobShard | None = None,
    ) -> int:
        """Bring items and ledger up to date after a pass over a source.

        Args:
            source: its name.
            failures: what failed in this pass.
            seen: ids of all items the source has now, when the pass was a whole one: items it
                no longer has are removed, and failures of its items that are not among
                `failures` are forgotten. None after a pass over a part of the source.
            shard: the share of the source that the pass was over: nothing is said of the others.

        Returns:
            Number of items removed.
        """
        gone: list[str] = []
        settled: set[tuple[str, str]] = set()
        if seen is not None:
            table = live_items(self.path, self._manifest, ["source", "id"])
            ids = table.filter(equal_to(table["source"], source))["id"].to_pylist()
            failed = [f.item_id for f in self.failures() if f.source == source]
            if shard is not None:
                ids, failed = (list(filter(shard.holds, known)) for known in (ids, failed))
            gone = [item_id for item_id in ids if item_id not in seen]
            settled = {(source, item_id) for item_id in failed}
        if gone:
            self.remove(source, gone)
        update_failures(self.path, failures, settled)
        if shard is not None:
            self._reach(source, shard, Reached.ENDED if seen is None else Reached.WHOLE)
        elif seen is not None:  # shares mean nothing any more: all of the source is here
            self._know(tuple(e for e in self._manifest.shards if e.source != source))
        return len(gone)

    def take_moved(self, source: str, seen: Collection[str]) -> int:
        """Take out the items of other sources that a source has now: their files have moved.

        Args:
            source: its name; a whole pass over it has just been committed.
            seen: ids of all items that it has.

        Returns:
            Number of items taken out; see `moved_items` for which.
        """
        moved = moved_items(live_items(self.path, self._manifest, COLUMNS), source, seen)
        if moved:
            part = self.part()
            for other, item_id in moved:
                part.remove_items(other, [item_id])
            part.commit()
        return len(moved)

    def _reach(self, source: str, shard: JobShard, reached: Reached) -> None:
        entry = ShardPass(source=source, shard=shard, reached=reached)
        self._know(with_passes(self._manifest.shards, [entry]))

    def _know(self, shards: tuple[ShardPass, ...]) -> None:
        if shards != self._manifest.shards:
            manifest = replace(self._manifest, shards=shards)
            write_manifest(self.path, manifest)
            self._manifest = manifest

    def _publish(self, number: int, files: Sequence[FileEntry]) -> None:
        part = Part(number=number, files=tuple(files))
        parts, next_part = (*self._manifest.parts, part), max(self._manifest.next_part, number + 1)
        manifest = replace(self._manifest, next_part=next_part, parts=parts)
        sync_directory(self.path / SHARDS)
        write_manifest(self.path, manifest)
        self._manifest = manifest
