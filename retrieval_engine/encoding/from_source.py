"""Turns the items of a source into the features of a store.

    source ──► load (read, hash, decode, resize: a pool of workers, ahead of the model)
           ──► encoder (batches of new images, then the part's new captions)
           ──► store (a writer thread, behind the model; one part at a time is whole or absent)

An item is looked at only as far as needed: an unchanged file is told by its size and time, a moved
or copied one by the sha256 of its bytes, and only the rest is decoded. What fails is written into
the store's failure ledger and disturbs nobody else's row.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.encode_report import EncodeOptions, EncodeReport
from retrieval_engine.errors import SourceEmpty, SourceError, StoreNotFound
from retrieval_engine.models import Arrays, Encoder, open_encoder
from retrieval_engine.models.checkpoint import trained_on
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import (
    DEFAULT_MODEL,
    Caption,
    Failure,
    Feature,
    ImageFacts,
    Item,
    Modality,
)
from retrieval_engine.sources import EmptySource, Source, open_source, read_item
from retrieval_engine.sources.decode import decode_photo, facts_of
from retrieval_engine.store import PartWriter, StoreWriter, open_store
from retrieval_engine.workers import Failed, open_pool
from retrieval_engine.workers.behind import Behind

_PART_BYTES = 256 << 20

__all__ = ["EncodeOptions", "EncodeReport", "encode", "open_changed"]


def encode(
    source: Source | str,
    store: Path | str,
    *,
    encoder: Encoder | str = DEFAULT_MODEL,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
) -> EncodeReport:
    """Encode what the store does not hold yet.

    Args:
        source: a source or its name, e.g. `folder:photos`.
        store: directory of the store, made when absent.
        encoder: an encoder or the name of its checkpoint.
        options: see `EncodeOptions`.
        progress: told about every item.

    Returns:
        Counts, times, and one `Failure` per item that could not be encoded.

    Raises:
        FingerprintMismatch: the store was made by another encoder.
        UsageError: a feature that the encoder does not emit.
        SourceError: the source cannot be read.
    """
    source = open_changed(source, store) if isinstance(source, str) else source
    encoder = open_encoder(encoder) if isinstance(encoder, str) else encoder
    options, progress = options or EncodeOptions(), progress or Silent()
    features = options.chosen(encoder)
    start = time.perf_counter()
    if line := _strange(encoder.spec.checkpoint, source.name):
        progress.say(line)
    # What makes a source fail shows here: before a store is made for it, or emptied for it.
    expected = _expected(source, options)
    if options.overwrite and next(_wanted(source, options), None) is None:
        raise SourceError(f"{source.name} holds no items: nothing was overwritten with nothing")
    report = EncodeReport(store=str(store), fingerprint=encoder.spec.fingerprint)
    with (
        StoreWriter.open(
            store, spec=encoder.spec, features=features, overwrite=options.overwrite
        ) as writer,
        Behind() as behind,
    ):
        if options.shard:
            writer.begin_shard(source.name, options.shard)
        run = _Run(source, encoder, options, progress, writer, behind, report)
        progress.start("encoding", expected)
        with open_pool(options.worker_kind, options.workers, ahead=2 * run.batch_size) as pool:
            loaded = pool.imap(run.load, run.changed_items())
            while run.encode_part(loaded):
                pass
            run.finish()
    progress.stop()
    report.seconds = time.perf_counter() - start
    return report


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


def _expected(source: Source, options: EncodeOptions) -> int | None:
    """Number of items a run will look at, where that is known before."""
    count = None if options.split or options.shard else source.count()
    if options.limit:
        return options.limit if count is None else min(count, options.limit)
    return count


def _wanted(source: Source, options: EncodeOptions) -> Iterator[Item]:
    return (item for item in source.items() if options.wants(item))


def _rows_of(size_bytes: int, features: Iterable[Feature]) -> int:
    """How many rows of these features fit into a number of bytes, at least one."""
    row = sum(int(np.prod(f.shape)) * np.dtype(f.dtype).itemsize for f in features)
    return max(1, size_bytes // row)


@dataclass(frozen=True, slots=True)
class _Loaded:
    key: str
    facts: ImageFacts
    pixels: NDArray[np.uint8] | None  # None where the store has the features already


@dataclass(frozen=True, slots=True)
class _Load:
    """What a decode worker does with an item; it carries all it needs and no model."""

    preprocessor: ImagePreprocessor
    known: Set[str]

    def __call__(self, item: Item) -> _Loaded:
        data = read_item(item)
        key = hashlib.sha256(data).hexdigest()
        if key in self.known:
            return _Loaded(key, facts_of(data), None)
        image, facts = decode_photo(data, least_side=self.preprocessor.least_side)
        return _Loaded(key, facts, self.preprocessor.pixels(image))


@dataclass(slots=True)
class _Run:
    """The state of one run of `encode`."""

    source: Source
    encoder: Encoder
    options: EncodeOptions
    progress: Progress
    writer: StoreWriter
    behind: Behind
    report: EncodeReport
    have: dict[Modality, set[str]] = field(init=False)
    batch_size: int = field(init=False)
    part_rows: int = field(init=False)
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.have = {m: set(self.writer.keys(m)) for m in Modality}
        self.batch_size = self.options.batch_size or self.encoder.default_batch_size
        fitting = _rows_of(_PART_BYTES, self.writer.features[Modality.IMAGES])
        self.part_rows = min(self.options.part_rows, fitting)

    @property
    def load(self) -> _Load:
        """What workers do."""
        return _Load(self.encoder.preprocessor, self.have[Modality.IMAGES])

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

    def encode_part(self, loaded: Iterator[tuple[Item, _Loaded | Failed]]) -> bool:
        """Encode one part's worth of items and publish it; False when there were none left."""
        part, forms = self.writer.part(), self.writer.features[Modality.IMAGES]
        rows: list[tuple[Item, str]] = []
        failures: list[Failure] = []
        for batch in self.batches(loaded, rows, failures):
            with self.report.timing():
                pixels = np.stack(list(batch.values()))
                arrays = self.encoder.encode_images(pixels, [form.name for form in forms])
            self.behind.do(part.add, Modality.IMAGES, list(batch), _kept(arrays, forms))
        self.encode_captions(part, [caption for item, _ in rows for caption in item.captions])
        self.behind.do(part.add_items, self.source.name, rows)
        self.behind.do(part.commit, failures)
        return bool(rows)

    def batches(
        self,
        loaded: Iterator[tuple[Item, _Loaded | Failed]],
        rows: list[tuple[Item, str]],
        failures: list[Failure],
    ) -> Iterator[dict[str, NDArray[np.uint8]]]:
        """Pixels of a part's new images by key, a batch at a time.

        Args:
            loaded: items as they come from the workers.
            rows: filled with the part's items and their keys.
            failures: filled with those that could not be loaded.
        """
        batch: dict[str, NDArray[np.uint8]] = {}
        for item, result in loaded:
            self.progress.advance()
            if isinstance(result, Failed):
                failures.append(self.failure(item, result))
                continue
            rows.append((replace(item, facts=result.facts), result.key))
            if result.pixels is None or result.key in self.have[Modality.IMAGES]:
                self.report.images.reused += 1
            else:
                self.have[Modality.IMAGES].add(result.key)
                self.report.images.encoded += 1
                batch[result.key] = result.pixels
            if len(batch) == self.batch_size:
                yield batch
                batch = {}
            if len(rows) == self.part_rows:
                break
        if batch:
            yield batch

    def encode_captions(self, part: PartWriter, captions: Sequence[Caption]) -> None:
        """Encode those captions whose text the store does not have."""
        forms = self.writer.features[Modality.CAPTIONS]
        have = self.have[Modality.CAPTIONS]
        new = {caption.key: caption.text for caption in captions if caption.key not in have}
        have.update(new)
        self.report.captions.encoded += len(new)
        self.report.captions.reused += len(captions) - len(new)
        if new and forms:
            with self.report.timing():
                names = [form.name for form in forms]
                arrays = self.encoder.encode_texts(list(new.values()), names)
            self.behind.do(part.add, Modality.CAPTIONS, list(new), _kept(arrays, forms))

    def failure(self, item: Item, failed: Failed) -> Failure:
        """Count an item that could not be loaded, and say why."""
        self.report.images.failed += 1
        self.report.captions.failed += len(item.captions)
        failure = Failure.of(item, self.source.name, failed.reason)
        self.report.failures.append(failure)
        return failure

    def finish(self) -> None:
        """Wait until all is written; take out of the store what the source no longer has."""
        self.behind.wait()
        # A part of the source says nothing about the rest of it.
        whole = not (self.options.split or self.options.limit or self.source.is_partial)
        seen, shard = self.seen if whole else None, self.options.shard
        self.report.removed = self.writer.finish(
            self.source.name, failures=self.report.failures, seen=seen, shard=shard
        )
        if whole:
            self.report.moved = self.writer.take_moved(self.source.name, self.seen)


def _kept(arrays: Arrays, forms: Iterable[Feature]) -> Arrays:
    """The arrays in the dtypes the store keeps."""
    return {form.name: arrays[form.name].astype(form.dtype, copy=False) for form in forms}
