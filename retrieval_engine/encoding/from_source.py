"""Turns the items of a source into the features of a store.

    source ──► load (read, hash, decode, resize: a pool of workers, ahead of the model)
           ──► encoder (batches of new images, then the part's new captions; in lanes or on devices)
           ──► store (a writer thread, behind the model; one part at a time is whole or absent)

An item is looked at only as far as needed: an unchanged file is told by its size and time, a moved
or copied one by the sha256 of its bytes, and only the rest is decoded. What fails is written into
the store's failure ledger and disturbs nobody else's row.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.arithmetic import followed_dtype
from retrieval_engine.encoding.device_pool import DevicePool, open_on
from retrieval_engine.encoding.encode_report import EncodeOptions, EncodeReport
from retrieval_engine.encoding.load import Load, Loaded
from retrieval_engine.encoding.steps import Batch, Computed, Described, PartEnd, Step, computed
from retrieval_engine.errors import SourceEmpty, SourceError, StoreNotFound
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.models.checkpoint import trained_on
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import DEFAULT_MODEL, Caption, Failure, Item, Modality
from retrieval_engine.sources import EmptySource, Source, open_source, readers_for
from retrieval_engine.store import PartWriter, StoreWriter, open_store
from retrieval_engine.store.key_set import KeySet
from retrieval_engine.store.mirror import shown_store
from retrieval_engine.workers import Failed, open_pool
from retrieval_engine.workers.behind import Behind

_PART_BYTES = 256 << 20
_TEXTS = 4096  # a batch: sorted by length inside, the more the less padding

__all__ = ["EncodeOptions", "EncodeReport", "encode", "open_changed"]


def encode(
    source: Source | str,
    store: Path | str,
    *,
    encoder: Encoder | DevicePool | str = DEFAULT_MODEL,
    options: EncodeOptions | None = None,
    on: str = "",
    progress: Progress | None = None,
) -> EncodeReport:
    """Encode what the store does not hold yet, and say what came of it.

    Args:
        source: a source or its name, e.g. `folder:photos`.
        store: directory of the store, made when absent.
        encoder: an encoder, the name of its checkpoint, or models of `open_devices`.
        options: see `EncodeOptions`.
        on: a Ray cluster, whose devices open the encoder by its name; see `open_devices`.
        progress: told about every item.

    Raises:
        FingerprintMismatch: the store was made by another encoder.
        UsageError, SourceError: it emits no such feature; the source cannot be read.
    """
    source = open_changed(source, store) if isinstance(source, str) else source
    options, progress, start = options or EncodeOptions(), progress or Silent(), time.perf_counter()
    anew = options.overwrite
    dtype = followed_dtype(store, overwrite=anew)
    if on:
        with open_on(on, encoder, dtype=dtype) as pool:
            return encode(source, store, encoder=pool, options=options, progress=progress)
    encoder = open_encoder(encoder, dtype=dtype) if isinstance(encoder, str) else encoder
    features = options.chosen(encoder)
    expected = _looked_at(source, encoder.spec.checkpoint, options, progress)
    report = EncodeReport(store=shown_store(Path(store)), fingerprint=encoder.spec.fingerprint)
    with (
        StoreWriter.open(store, spec=encoder.spec, features=features, overwrite=anew) as writer,
        Behind() as behind,
    ):
        if options.shard:
            writer.begin_shard(source.name, options.shard)
        run = _Run(source, encoder, options, progress, writer, behind, report)
        progress.start("encoding", expected)
        load = Load(encoder.preprocessor, run.have[Modality.IMAGES])
        workers = options.workers or readers_for(source.name)
        with open_pool(options.worker_kind, workers, ahead=2 * run.batch_size) as pool:
            steps = run.steps(pool.imap(load, run.changed_items()))
            if isinstance(encoder, DevicePool):
                run.share(steps, encoder)
            else:
                with closing(computed(steps, encoder)) as found:
                    for step, (what, seconds) in found:
                        report.model_seconds += seconds
                        run.write(step, what)
            run.finish()
    progress.stop()
    report.seconds = time.perf_counter() - start
    return report


def _looked_at(
    source: Source, checkpoint: str, options: EncodeOptions, progress: Progress
) -> int | None:
    """Number of items expected. What makes a source fail shows here, before a store is touched."""
    if line := _strange(checkpoint, source.name):
        progress.say(line)
    expected = items_expected(source, options)
    if options.overwrite and next(_wanted(source, options), None) is None:
        raise SourceError(f"{source.name} holds no items: nothing was overwritten with nothing")
    return expected


def _strange(checkpoint: str, source: str) -> str:
    """A line where a model of drawn scenes meets other images, or one of photographs scenes."""
    learned, drawn = trained_on(checkpoint), source.startswith("scenes:")
    if not learned or drawn == (learned == "scenes"):
        return ""
    known = "drawn scenes" if learned == "scenes" else "photographs"
    other = "drawn scenes" if drawn else "other images"
    return f"{checkpoint} was trained on {known} alone: of {other} it knows little"


def open_changed(source: str, store: Path | str) -> Source:
    """The source with this name; one that has become empty is one where the store knows its items.

    Raises:
        UsageError, SourceError: as `open_source`.
    """
    try:
        return open_source(source)
    except SourceEmpty as error:
        try:
            known = error.source in open_store(store).items()["source"].unique().to_pylist()
        except StoreNotFound:
            known = False
        if not known:
            raise
        return EmptySource(error.source)


def items_expected(source: Source, options: EncodeOptions) -> int | None:
    """Number of items a run will look at, or None where only reading them would tell."""
    count = None if options.split or options.shard else source.count()
    if options.limit:
        return options.limit if count is None else min(count, options.limit)
    return count


def _wanted(source: Source, options: EncodeOptions) -> Iterator[Item]:
    return (item for item in source.items() if options.wants(item))


@dataclass(slots=True)
class _Run:
    """The state of one run of `encode`."""

    source: Source
    encoder: Described
    options: EncodeOptions
    progress: Progress
    writer: StoreWriter
    behind: Behind
    report: EncodeReport
    have: dict[Modality, KeySet] = field(init=False)
    batch_size: int = field(init=False)
    part_rows: int = field(init=False)
    seen: set[str] = field(default_factory=set)
    part: PartWriter | None = None
    bad: dict[str, str] = field(default_factory=dict)  # why the model failed, by cache key

    def __post_init__(self) -> None:
        self.have = {m: self.writer.keys(m) for m in Modality}
        self.batch_size = self.options.batch_size or self.encoder.default_batch_size
        forms = self.writer.features[Modality.IMAGES]
        row_bytes = sum(int(np.prod(f.shape)) * np.dtype(f.dtype).itemsize for f in forms)
        self.part_rows = min(self.options.part_rows, max(1, _PART_BYTES // row_bytes))

    def changed_items(self) -> Iterator[Item]:
        """The items asked for that the store does not hold as they are; others are counted."""
        items = _wanted(self.source, self.options)
        for item in islice(items, self.options.limit or None):
            self.seen.add(item.id)
            if not item.fault and self.writer.unchanged(item, self.source.name):
                self.report.images.reused += 1
                self.report.captions.reused += len(item.captions)
                self.progress.advance()
            else:
                yield item

    def steps(self, loaded: Iterator[tuple[Item, Loaded | Failed]]) -> Iterator[Step]:
        """All that is to be computed, part by part, in the source's order."""
        while True:
            end = PartEnd()
            yield from self.images(loaded, end)
            if not (end.rows or end.failures):
                return
            yield from self.captions([caption for item, _ in end.rows for caption in item.captions])
            yield end

    def images(
        self, loaded: Iterator[tuple[Item, Loaded | Failed]], end: PartEnd
    ) -> Iterator[Batch]:
        """A part's new images; the end of the part is told its items and what failed to load."""
        forms, have = self.writer.features[Modality.IMAGES], self.have[Modality.IMAGES]
        batch: dict[str, NDArray[np.uint8]] = {}
        for item, result in loaded:
            end.items += 1
            if isinstance(result, Failed):
                end.failures.append(self.failure(item, result.reason))
                continue
            self.report.read_seconds += result.read_seconds
            self.report.decode_seconds += result.decode_seconds
            end.rows.append((replace(item, facts=result.facts), result.key))
            if result.pixels is None or result.key in have:
                self.report.images.reused += 1
            else:
                have.update([result.key])
                batch[result.key] = result.pixels
            if len(batch) == self.batch_size:
                yield Batch.of_images(batch, forms, end.taken())
                batch = {}
            if len(end.rows) == self.part_rows:
                break
        if batch:
            yield Batch.of_images(batch, forms, end.taken())

    def captions(self, captions: Sequence[Caption]) -> Iterator[Batch]:
        """Those captions whose text the store does not have."""
        forms, have = self.writer.features[Modality.CAPTIONS], self.have[Modality.CAPTIONS]
        keyed = ((caption.key, caption.text) for caption in captions)
        new = {key: text for key, text in keyed if key not in have}
        have.update(new)
        self.report.captions.reused += len(captions) - len(new)
        if new and not forms:
            self.report.captions.encoded += len(new)
        elif new:
            batch = Batch(
                modality=Modality.CAPTIONS, keys=list(new), inputs=list(new.values()), forms=forms
            )
            yield from batch.pieces(_TEXTS)

    def share(self, steps: Iterator[Step], devices: DevicePool) -> None:
        """Have the devices compute the steps, and write what they make of them in order."""
        for step, found in devices.imap(steps, self.progress):
            self.progress.detail(devices.rates)
            self.write(step, found)
        self.report.devices = devices.tallies
        self.report.model_seconds = sum(tally.model_seconds for tally in devices.tallies)
        self.report.transfer_seconds = sum(tally.transfer_seconds for tally in devices.tallies)

    def write(self, step: Step, found: Computed | None) -> None:
        """Hand what was computed to the writer; at the end of a part publish it."""
        self.part = self.part or self.writer.part()
        self.progress.advance(step.items)
        if isinstance(step, PartEnd):
            rows = [row for row in step.rows if not self.is_bad(*row, step.failures)]
            self.behind.do(self.part.add_items, self.source.name, rows)
            self.behind.do(self.part.commit, step.failures)
            self.part = None
        elif found is not None:
            self.bad.update(found.bad)
            self.report.of(step.modality).encoded += len(found.keys)
            if found.keys:
                self.behind.do(self.part.add, step.modality, found.keys, found.arrays)

    def is_bad(self, item: Item, key: str, failures: list[Failure]) -> bool:
        """Whether an item must go to the failures because the model failed on a part of it."""
        keys = (key, *(caption.key for caption in item.captions)) if self.bad else ()
        reason = next((self.bad[key] for key in keys if key in self.bad), "")
        if reason:
            failures.append(self.failure(item, reason))
        return bool(reason)

    def failure(self, item: Item, reason: str) -> Failure:
        """Count an item that could not be encoded, and say why."""
        self.report.images.failed += 1
        self.report.captions.failed += len(item.captions)
        failure = Failure.of(item, self.source.name, reason)
        self.report.failures.append(failure)
        return failure

    def finish(self) -> None:
        """Wait until all is written; take out of the store what the source no longer has."""
        self.behind.wait()
        self.report.write_seconds = self.behind.seconds
        # A part of the source says nothing about the rest of it.
        whole = not (self.options.split or self.options.limit or self.source.is_partial)
        seen, shard = self.seen if whole else None, self.options.shard
        self.report.removed = self.writer.finish(
            self.source.name, failures=self.report.failures, seen=seen, shard=shard
        )
        if whole:
            self.report.moved = self.writer.take_moved(self.source.name, self.seen)
