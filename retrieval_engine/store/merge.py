"""Several stores into one: the shards of a job, or stores of several sources.

Shards of features are linked or copied as they are; of the items one new table is written for each
store that comes. All of it becomes visible by one manifest, so that a kill at any moment leaves the
target as it was.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.durable import partial_of, publish, sync_directory
from retrieval_engine.errors import StoreDamaged, StoreError, UsageError
from retrieval_engine.fingerprint import digest
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Json, Modality
from retrieval_engine.store.begin import (
    begin_store,
    has_parts,
    lock_store,
    make_directory,
    next_free,
    own_shards,
    sweep,
    unmake,
)
from retrieval_engine.store.compact import PART_ITEMS, publish_live
from retrieval_engine.store.item_rows import ItemRows
from retrieval_engine.store.items import LIVE, live_items
from retrieval_engine.store.job_shards import Job, ShardPass, jobs_of, with_passes
from retrieval_engine.store.keys import find_keys, raw_keys
from retrieval_engine.store.ledger import update_failures
from retrieval_engine.store.manifest import (
    HEADER,
    REPAIR_HINT,
    SHARDS,
    FileEntry,
    FileKind,
    Manifest,
    Part,
    new_header,
    parts_json,
    read_manifest,
    write_manifest,
)
from retrieval_engine.store.merge_plan import ItemPlan, check_alike, plan_items
from retrieval_engine.store.mirror import local_store
from retrieval_engine.store.reader import Store, open_store
from retrieval_engine.store.rows import RowMap
from retrieval_engine.store.shard_reader import ShardReader, check_file, have_file, is_missing


@dataclass(slots=True, kw_only=True)
class Merged:
    """What a merge did.

    Attributes:
        store: the target.
        stores: number of stores that were taken in.
        unchanged: number of stores that were in already, as they are.
        items: number of items that came.
        replaced: of them, those that were there in an earlier state.
        removed: items of the target that their shard has no longer.
        linked: number of files that the target shares with the stores that came.
        copied: number of files that had to be copied.
        jobs: the jobs that the target has shards of; they say what is missing.
    """

    store: str
    stores: int = 0
    unchanged: int = 0
    items: int = 0
    replaced: int = 0
    removed: int = 0
    linked: int = 0
    copied: int = 0
    jobs: Sequence[Job] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Json]:
        """As `vlre store merge --json` has it."""
        return {**asdict(self), "jobs": [job.to_json() for job in self.jobs]}


def merge_stores(
    parts: Sequence[str | Path], store: str | Path, *, progress: Progress | None = None
) -> Merged:
    """Take stores of one encoder into one.

    The parts stay as they are; where the file system can, the store shares their files. Items that
    failed in one part and are encoded in another are encoded. What was merged before and did not
    change since is skipped, and of a shard that did change the later state counts.

    Args:
        parts: directories of the stores to take in.
        store: directory of the store they become; made when absent, else it keeps what it has.
        progress: told about every file.

    Raises:
        FingerprintMismatch: they are of different encoders.
        StoreError: they keep other features, or an item differs between two of them; nothing
            became visible.
        StoreDamaged: a file is not as it was written.
    """
    path = local_store(store)
    alike = {local_store(part).resolve(): part for part in parts}
    came = [open_store(part) for part in alike.values()]
    if path.exists() and any(part.path.samefile(path) for part in came):
        raise UsageError(f"{path} is among the parts, and the `store` that they become")
    check_alike(came)
    made = make_directory(path)
    lock = lock_store(path)
    is_new = not (path / HEADER).exists()
    try:
        own_shards(path)
        target = _empty_like(came[0], path) if is_new else open_store(path)
        check_alike([target, *came])
        sweep(path, target.manifest)
        states = {part: _state(part) for part in came}  # before its ledger is read
        news = {p: state for p, state in states.items() if not _is_in(p, state, target.manifest)}
        report = Merged(store=str(store), stores=len(news), unchanged=len(came) - len(news))
        report.jobs = jobs_of(target.manifest.shards)
        if not news:
            return report
        plan = plan_items(target, [*news])
        if is_new:
            begin_store(path, target.header)
        try:
            _Merger(target, report, progress or Silent()).merge(news, plan)
        except BaseException:
            sweep(path, read_manifest(path))
            raise
    except BaseException:
        if is_new and not has_parts(path):
            unmake(path, made)
        raise
    finally:
        lock.release()
    return report


def _empty_like(part: Store, path: Path) -> Store:
    header = new_header(part.spec, part.header.features)
    return Store(path, replace(header, fingerprint=part.fingerprint), Manifest())


def _state(part: Store) -> str:
    """A digest of all that a merge takes from a store."""
    value: dict[str, Json] = {
        "parts": parts_json(part.manifest),
        "shards": [entry.to_json() for entry in part.manifest.shards],
    }
    return digest({**value, "failures": [asdict(failure) for failure in part.failures()]})


def _is_in(part: Store, state: str, manifest: Manifest) -> bool:
    """Whether a store was merged as it is; known of shards of jobs only."""
    known = {(e.source, e.shard) for e in manifest.shards if e.state == state}
    entries = part.manifest.shards
    return bool(entries) and all((e.source, e.shard) in known for e in entries)


class _Merger:
    """Writes what is new into the target, and shows it at the end."""

    def __init__(self, target: Store, report: Merged, progress: Progress) -> None:
        self._target, self._path = target, target.path
        self._report, self._progress = report, progress
        self._number = next_free(target.path, target.manifest)
        self._parts: list[Part] = []
        self._known = dict(self._known_keys())

    def merge(self, news: Mapping[Store, str], plan: ItemPlan) -> None:
        """Take in stores, each given with its state, as planned."""
        files = [e for part in news for e in part.manifest.files() if e.kind != FileKind.ITEMS]
        self._progress.start("merging", len(files))
        for part, taken in zip(news, plan.taken, strict=True):
            self._take_features(part)
            self._take_items(part, taken)
        if any(plan.removed.values()):
            rows = ItemRows()
            for source, ids in plan.removed.items():
                for item_id in ids:
                    rows.remove(source, item_id)
            self._report.removed = len(rows)
            self._add(rows.publish(self._new(FileKind.ITEMS, "parquet")))
        self._report.replaced = plan.replaced
        self._show(news, plan)
        self._progress.stop()

    def _show(self, news: Mapping[Store, str], plan: ItemPlan) -> None:
        """Commit: the ledger first, as a writer does, then the one manifest."""
        before = self._target.manifest
        after = replace(
            before,
            next_part=max(before.next_part, self._number),
            parts=(*before.parts, *self._parts),
            shards=with_passes(before.shards, self._passes(news, plan)),
        )
        sync_directory(self._path / SHARDS)
        update_failures(self._path, plan.failures, plan.settled)
        if after != before:
            write_manifest(self._path, after)
        self._report.jobs = jobs_of(after.shards)

    def _passes(self, news: Mapping[Store, str], plan: ItemPlan) -> Iterator[ShardPass]:
        """The shards that came. What is here otherwise, and got nothing new, is no job of shards."""
        before = self._target.manifest
        table = live_items(self._path, before, ["source"])
        others = set(table["source"].unique().to_pylist()) - {e.source for e in before.shards}
        for (part, state), taken in zip(news.items(), plan.taken, strict=True):
            for entry in part.manifest.shards:
                if entry.source not in others or taken.any():
                    yield replace(entry, state=state)

    def _known_keys(self) -> Iterator[tuple[tuple[Modality, str], NDArray[np.bytes_]]]:
        """The keys that have each current feature, sorted."""
        reader = ShardReader(self._path)
        for modality in Modality:
            table = RowMap(self._target.manifest.files(modality), reader)
            for name, form in self._target.features(modality).items():
                yield (modality, name), table.keys_of(table.places(form) >= 0)
        reader.close()

    def _take_features(self, part: Store) -> None:
        """Link the files that hold rows which the target lacks."""
        reader = ShardReader(part.path)
        try:
            for entry in part.manifest.files():
                if entry.kind != FileKind.ITEMS:
                    self._progress.advance()
                    if self._lacks(entry, reader):
                        self._add(self._take_file(part, entry))
        finally:
            reader.close()

    def _lacks(self, entry: FileEntry, reader: ShardReader) -> bool:
        keys = raw_keys(reader.keys(entry))
        modality = Modality(entry.kind)
        forms = self._target.features(modality).items()
        here = [name for name, form in forms if entry.features.get(name) == form]
        return any((find_keys(self._known[modality, name], keys) < 0).any() for name in here)

    def _take_file(self, part: Store, entry: FileEntry) -> FileEntry:
        """Link or copy one file, and check that it is as it was written."""
        file, final = have_file(part.path, entry), self._new(entry.kind, "h5")
        taken = replace(entry, name=final.name)
        try:
            os.link(file.resolve(), final)  # of a link the file behind it
            self._report.linked += 1
            problem = check_file(part.path, entry)
        except OSError:  # another file system, or one that has no links
            self._report.copied += 1
            problem = "" if self._copy(part, entry, final) else f"{file} changed while it was read"
        if problem:
            raise StoreDamaged(check_file(part.path, entry) or problem, hint=REPAIR_HINT)
        return taken

    def _copy(self, part: Store, entry: FileEntry, final: Path) -> bool:
        partial = partial_of(final)
        try:
            with (part.path / SHARDS / entry.name).open("rb") as read, partial.open("xb") as write:
                shutil.copyfileobj(read, write, 1 << 20)
            return publish(partial, final) == (entry.size_bytes, entry.sha256)
        except FileNotFoundError as error:
            raise is_missing(part.path, entry) from error
        except OSError as error:
            raise StoreError(f"cannot write {final}: {error.strerror or error}") from error
        finally:
            partial.unlink(missing_ok=True)

    def _take_items(self, part: Store, taken: NDArray[np.bool_]) -> None:
        if not taken.any():
            return
        table = live_items(part.path, part.manifest, LIVE).filter(taken)
        self._report.items += len(table)
        for start in range(0, len(table), PART_ITEMS):
            some = table.slice(start, PART_ITEMS)
            self._add(publish_live(some, self._new(FileKind.ITEMS, "parquet")))

    def _new(self, kind: FileKind, ending: str) -> Path:
        return self._path / SHARDS / f"{kind}-{self._number:05d}.{ending}"

    def _add(self, entry: FileEntry) -> None:
        self._parts.append(Part(number=self._number, files=(entry,)))
        self._number += 1
