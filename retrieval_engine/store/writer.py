"""Writing a store: one writer, parts that appear whole or not at all."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import FingerprintMismatch, ShapeError, StoreDamaged, StoreError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.records import Failure, Feature, Item, Modality
from retrieval_engine.store.inventory import Inventory
from retrieval_engine.store.items import ItemRows
from retrieval_engine.store.keys import Keys, hex_keys, raw_keys
from retrieval_engine.store.ledger import read_failures, update_failures
from retrieval_engine.store.lock import WriterLock
from retrieval_engine.store.manifest import (
    FAILURES,
    HEADER,
    LOCK,
    MANIFEST,
    PARTIAL,
    SHARDS,
    Features,
    FileEntry,
    Header,
    Manifest,
    Part,
    new_header,
    read_header,
    read_manifest,
    sync_directory,
    write_header,
    write_manifest,
)
from retrieval_engine.store.shard import Arrays, ShardWriter

_OURS = {HEADER, MANIFEST, FAILURES, LOCK, SHARDS}


class StoreWriter:
    """Adds to a store. One at a time; readers are never in its way.

    Use `open`, and as a context manager: leaving it gives the lock back and forgets an
    uncommitted part.
    """

    def __init__(self, path: Path, lock: WriterLock, header: Header, declared: Features) -> None:
        self.path = path
        self.spec = header.spec
        self.declared = declared
        self._lock = lock
        self._manifest = read_manifest(path)
        self._part: PartWriter | None = None
        sweep(path, self._manifest)
        self._inventory = Inventory(path, header, self._manifest, declared)

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
            path: its directory.
            spec: the encoder whose features will be added.
            features: form of the features each added image and caption will have. What is
                `unchanged` or `present` is judged by these.
            overwrite: throw away what the store holds.
            adopt_spec: let the store belong to `spec` from now on. Features of any other form
                than declared here are no longer served; those that did not change stay.

        Raises:
            FingerprintMismatch: the store is another encoder's.
            ShapeError: a feature is stored in another shape or dtype.
            StoreError: another writer is at work, or the directory holds something else.
        """
        path = Path(path)
        _make_directory(path)
        lock = WriterLock(path)
        try:
            declared = {
                modality: {form.name: form for form in features.get(modality, ())}
                for modality in Modality
            }
            header = _prepare(path, spec, declared, overwrite=overwrite, adopt=adopt_spec)
            return cls(path, lock, header, declared)
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget an uncommitted part and let others write."""
        if self._part is not None:
            self._part.discard()
        self._lock.release()

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

    def keys(self, modality: Modality) -> NDArray[np.bytes_]:
        """Sorted (n,) `S64` keys that have all declared features, uncommitted rows included."""
        return hex_keys(self._inventory.keys(modality))

    def failures(self) -> list[Failure]:
        """The ledger as it stands."""
        return read_failures(self.path)

    def part(self) -> "PartWriter":
        """Begin the next part; at most one is open.

        Raises:
            StoreError: the last one is neither committed nor discarded.
        """
        if self._part is not None:
            raise StoreError(
                f"part {self._part.number} of {self.path} is still open",
                hint="commit() or discard() it first",
            )
        self._part = PartWriter(self, self._manifest.next_part)
        return self._part

    def remove(self, source: str, ids: Iterable[str]) -> None:
        """Mark items as gone, in a part of their own. Their features stay for others' use."""
        part = self.part()
        part.remove_items(source, ids)
        part.commit()

    def _publish(self, files: Sequence[FileEntry], number: int) -> None:
        part = Part(number=number, files=tuple(files))
        manifest = Manifest(next_part=number + 1, parts=(*self._manifest.parts, part))
        sync_directory(self.path / SHARDS)
        write_manifest(self.path, manifest)
        self._manifest = manifest


class PartWriter:
    """Rows that will appear together. Made by `StoreWriter.part`.

    Attributes:
        number: of the part.
        images: image rows added.
        captions: caption rows added.
        items: item rows added.
    """

    def __init__(self, writer: StoreWriter, number: int) -> None:
        self.number = number
        self._writer = writer
        self._shards: dict[Modality, ShardWriter] = {}
        self._items = ItemRows()
        self._settled: dict[tuple[str, str], tuple[Item, str] | None] = {}

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

    def add_images(self, keys: Keys, arrays: Arrays) -> None:
        """Add features of images.

        Args:
            keys: (n,) sha256 of each image's bytes, 64 hex digits.
            arrays: (n, *shape) of every declared feature, in the declared dtype.

        Raises:
            ShapeError: a feature is missing, unknown or of another form.
            StoreError: NaN, infinity or a zero vector; the message names the key.
        """
        self._add(Modality.IMAGES, keys, arrays)

    def add_captions(self, keys: Keys, arrays: Arrays) -> None:
        """Add features of captions; keys are sha256 of their texts. See `add_images`."""
        self._add(Modality.CAPTIONS, keys, arrays)

    def _add(self, modality: Modality, keys: Keys, arrays: Arrays) -> None:
        writer = self._writer
        raw = raw_keys(keys)
        if modality not in self._shards:
            path = writer.path / SHARDS / f"{modality}-{self.number:05d}.h5"
            features = writer.declared[modality]
            self._shards[modality] = ShardWriter(path, modality, features, writer.spec)
        self._shards[modality].append(raw, arrays)
        writer._inventory.add_keys(modality, raw)

    def add_items(self, source: str, items: Iterable[tuple[Item, str]]) -> None:
        """Add or replace items.

        Args:
            source: name of the source their ids are unique within.
            items: each with the key of its image.

        Raises:
            StoreError: an item cannot be written down.
        """
        for item, key in items:
            self._items.add(source, item, key)
            self._settled[source, item.id] = item, key

    def remove_items(self, source: str, ids: Iterable[str]) -> None:
        """Mark items as gone."""
        for item_id in ids:
            self._items.remove(source, item_id)
            self._settled[source, item_id] = None

    def commit(self, failures: Iterable[Failure] = ()) -> None:
        """Make everything added visible, at once.

        Args:
            failures: items that could not be encoded. An item added in this part leaves the
                ledger of failures.

        Raises:
            StoreError: the disk refuses; nothing became visible.
        """
        writer = self._writer
        shards = [shard for shard in self._shards.values() if shard.rows]
        for empty in (shard for shard in self._shards.values() if not shard.rows):
            empty.discard()
        files = [shard.publish() for shard in shards]
        if len(self._items):
            path = writer.path / SHARDS / f"items-{self.number:05d}.parquet"
            files.append(self._items.publish(path))
        # The ledger first: after a crash here it is still true, for what it no longer lists was
        # not committed and will be tried again.
        update_failures(writer.path, failures, self._settled.keys())
        if files:
            writer._publish(files, self.number)
        writer._inventory.settle(self._settled)
        self._close()

    def discard(self) -> None:
        """Forget everything added."""
        for shard in self._shards.values():
            shard.discard()
        self._writer._inventory.forget_pending()
        self._close()

    def _close(self) -> None:
        self._shards = {}
        self._writer._part = None


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / SHARDS).exists()
        foreign = [
            entry.name for entry in path.iterdir() if entry.name.removesuffix(PARTIAL) not in _OURS
        ]
    except OSError as error:
        raise StoreError(f"cannot write a store at {path}: {error.strerror}") from error
    if foreign and not (path / HEADER).exists():
        raise StoreError(
            f"{path} is no store, and not empty: it holds {sorted(foreign)[0]}",
            hint="name a new or empty directory as --store",
        )


def _prepare(
    path: Path, spec: EncoderSpec, declared: Features, *, overwrite: bool, adopt: bool
) -> Header:
    """Make the store's header say what this writer will add."""
    (path / SHARDS).mkdir(exist_ok=True)
    exists = (path / HEADER).exists()
    if overwrite or not exists:
        _start_anew(path, overwrite=overwrite)
        header = new_header(spec, declared)
        write_header(path, header)
        return header
    before = read_header(path)
    same = before.fingerprint == spec.fingerprint
    if not same and not adopt:
        raise _mismatch(f"the store {path}", before.fingerprint, spec.fingerprint)
    features: dict[Modality, dict[str, Feature]] = {m: {} for m in Modality}
    for modality, forms in declared.items():
        known = before.features.get(modality, {})
        features[modality] = {**(known if same else {}), **forms}
        for name, form in forms.items():
            _check_form(path, known.get(name, form), form, adopt=adopt)
    header = before
    if not same or features != before.features:
        header = Header(
            spec=spec,
            fingerprint=spec.fingerprint,
            features=features,
            created=before.created,
            versions=before.versions,
        )
        write_header(path, header)
    return header


def _check_form(path: Path, known: Feature, form: Feature, *, adopt: bool) -> None:
    if known.fingerprint != form.fingerprint:
        if not adopt:
            raise _mismatch(f"{form.name} in {path}", known.fingerprint, form.fingerprint)
    elif (known.shape, known.dtype) != (form.shape, form.dtype):
        raise ShapeError(
            f"{path} keeps {form.name} as {known.dtype}{list(known.shape)}, not "
            f"{form.dtype}{list(form.shape)}",
            hint="use a new --store, or `vlre encode --overwrite`",
        )


def _mismatch(what: str, seen: str, expected: str) -> FingerprintMismatch:
    return FingerprintMismatch(
        what,
        seen=seen,
        expected=expected,
        hint="use a new --store, or re-encode with `vlre encode --overwrite`",
    )


def _start_anew(path: Path, *, overwrite: bool) -> None:
    """An empty manifest, whose numbering goes on where the old one stopped."""
    next_part = 0
    if (path / MANIFEST).exists():
        try:
            before = read_manifest(path)
        except StoreDamaged:
            if not overwrite:
                raise
            before = Manifest(next_part=_highest_number(path) + 1)
        if before.parts and not overwrite:
            raise StoreDamaged(
                f"{path / HEADER} is missing, {path / MANIFEST} lists {len(before.parts)} parts",
                hint="restore it from a copy, or encode again with `vlre encode --overwrite`",
            )
        next_part = before.next_part
    write_manifest(path, Manifest(next_part=next_part))
    (path / FAILURES).unlink(missing_ok=True)


def _highest_number(path: Path) -> int:
    digits = (file.name.partition("-")[2].partition(".")[0] for file in (path / SHARDS).iterdir())
    return max((int(d) for d in digits if d.isdecimal()), default=-1)


def sweep(path: Path, manifest: Manifest) -> list[str]:
    """Delete what a dead writer left: partial files and shards that no manifest lists.

    The caller holds the writer's lock.

    Returns:
        Names of the files deleted.
    """
    listed = {entry.name for entry in manifest.files()}
    left = [file for file in (path / SHARDS).iterdir() if file.name not in listed]
    left += list(path.glob(f"*{PARTIAL}"))
    for file in left:
        file.unlink()
    return sorted(file.name for file in left)
