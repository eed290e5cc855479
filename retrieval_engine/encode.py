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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoders import Encoder, open_encoder
from retrieval_engine.encoders.preprocess import ImagePreprocessor
from retrieval_engine.errors import UsageError
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Caption, Failure, Feature, Item, Json, Modality
from retrieval_engine.sources import Source, open_source, read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import PartWriter, StoreWriter
from retrieval_engine.workers import Failed, open_pool
from retrieval_engine.workers.behind import Behind

_PART_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """How to encode; none of it changes the vectors but `features` and `store_dtype`.

    Attributes:
        features: any of `itc`, `pooled`, `tokens` and what else the family offers.
        store_dtype: what floating-point features are kept in.
        split: only items of this split; empty for all.
        limit: only the first items; 0 for all.
        batch_size: images per forward pass; 0 lets the device decide.
        workers: decode workers; 0 means one for each core.
        worker_kind: `threads`, `processes` or `serial`.
        part_rows: images per shard at most; what a kill loses is less than one shard.
        overwrite: begin a new store in place of the one that is there.
    """

    features: tuple[str, ...] = ("itc", "pooled")
    store_dtype: str = "float16"
    split: str = ""
    limit: int = 0
    batch_size: int = 0
    workers: int = 0
    worker_kind: str = "threads"
    part_rows: int = 2048
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("limit", "batch_size", "workers"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}, must be 0 or more")
        if self.part_rows < 1:
            raise UsageError(f"part_rows is {self.part_rows}, must be at least 1")


@dataclass(slots=True, kw_only=True)
class Tally:
    """How many of one modality were encoded, found in the store, or failed."""

    encoded: int = 0
    reused: int = 0
    failed: int = 0


@dataclass(slots=True, kw_only=True)
class EncodeReport:
    """What an encode run did.

    Attributes:
        store: directory of the store.
        fingerprint: of the encoder.
        images: per item.
        captions: per caption.
        removed: items of the source that are gone and were taken out of the store.
        seconds: wall time.
        model_seconds: of it, inside the encoder.
        failures: one per failed item.
    """

    store: str
    fingerprint: str
    images: Tally = field(default_factory=Tally)
    captions: Tally = field(default_factory=Tally)
    removed: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def to_json(self) -> dict[str, Json]:
        """The report in the form of `vlre encode --json`."""

        def tally(t: Tally) -> dict[str, Json]:
            return {"encoded": t.encoded, "reused": t.reused, "failed": t.failed}

        return {
            "store": self.store,
            "fingerprint": self.fingerprint,
            "images": tally(self.images),
            "captions": tally(self.captions),
            "removed": self.removed,
            "seconds": round(self.seconds, 3),
            "model_seconds": round(self.model_seconds, 3),
            "images_per_s": round(self.images.encoded / max(self.seconds, 1e-9), 2),
        }


def encode(
    source: Source | str,
    store: Path | str,
    *,
    encoder: Encoder | str = "vlre-tiny",
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
    source = open_source(source) if isinstance(source, str) else source
    encoder = open_encoder(encoder) if isinstance(encoder, str) else encoder
    options, progress = options or EncodeOptions(), progress or Silent()
    features = chosen_features(encoder, options.features, options.store_dtype)
    batch_size = options.batch_size or encoder.default_batch_size
    start = time.perf_counter()
    with ExitStack() as stack:
        writer = stack.enter_context(
            StoreWriter.open(
                Path(store), spec=encoder.spec, features=features, overwrite=options.overwrite
            )
        )
        run = _Run(
            source=source,
            encoder=encoder,
            options=options,
            progress=progress,
            writer=writer,
            report=EncodeReport(store=str(store), fingerprint=encoder.spec.fingerprint),
            have={modality: set(writer.keys(modality)) for modality in Modality},
            batch_size=batch_size,
            part_rows=min(options.part_rows, _rows_of(_PART_BYTES, features[Modality.IMAGES])),
        )
        pool = stack.enter_context(
            open_pool(options.worker_kind, options.workers, ahead=2 * batch_size)
        )
        behind = stack.enter_context(Behind())
        load = _Load(encoder.preprocessor, frozenset(run.have[Modality.IMAGES]))
        progress.start("encoding", _expected(source, options))
        loaded = pool.imap(load, run.changed_items())
        while run.encode_part(loaded, behind):
            pass
        behind.wait()
        gone_known = not options.split and not options.limit
        run.report.removed = writer.finish(
            source.name, failures=run.report.failures, seen=run.seen if gone_known else None
        )
    progress.stop()
    run.report.seconds = time.perf_counter() - start
    return run.report


def _expected(source: Source, options: EncodeOptions) -> int | None:
    """Number of items a run will look at, where that is known before."""
    count = None if options.split else source.count()
    if options.limit:
        return options.limit if count is None else min(count, options.limit)
    return count


def _rows_of(size_bytes: int, features: Iterable[Feature]) -> int:
    """How many rows of these features fit into a number of bytes, at least one."""
    row = sum(int(np.prod(f.shape)) * np.dtype(f.dtype).itemsize for f in features)
    return max(1, size_bytes // row)


@dataclass(frozen=True, slots=True)
class _Loaded:
    key: str
    pixels: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class _Load:
    """What a decode worker does with an item; it carries all it needs and no model."""

    preprocessor: ImagePreprocessor
    known: frozenset[str]

    def __call__(self, item: Item) -> _Loaded:
        data = read_bytes(item.uri)
        key = hashlib.sha256(data).hexdigest()
        if key in self.known:
            return _Loaded(key, None)
        return _Loaded(key, self.preprocessor.pixels(decode(data)))


@dataclass(slots=True, kw_only=True)
class _Run:
    """The state of one run of `encode`."""

    source: Source
    encoder: Encoder
    options: EncodeOptions
    progress: Progress
    writer: StoreWriter
    report: EncodeReport
    have: dict[Modality, set[str]]
    batch_size: int
    part_rows: int
    seen: set[str] = field(default_factory=set)

    def changed_items(self) -> Iterator[Item]:
        """The items asked for that the store does not hold as they are; others are counted."""
        split = self.options.split
        items = (item for item in self.source.items() if not split or item.split == split)
        for item in islice(items, self.options.limit or None):
            self.seen.add(item.id)
            if self.writer.unchanged(item, self.source.name):
                self.report.images.reused += 1
                self.report.captions.reused += len(item.captions)
                self.progress.advance()
            else:
                yield item

    def encode_part(self, loaded: Iterator[tuple[Item, _Loaded | Failed]], behind: Behind) -> bool:
        """Encode one part's worth of items and publish it; False when there were none left."""
        part = self.writer.part()
        rows: list[tuple[Item, str]] = []
        batch: dict[str, NDArray[np.uint8]] = {}
        for item, result in loaded:
            self.progress.advance()
            if isinstance(result, Failed):
                self.fail(item, result)
                continue
            rows.append((item, result.key))
            if result.pixels is None or result.key in self.have[Modality.IMAGES]:
                self.report.images.reused += 1
            else:
                self.have[Modality.IMAGES].add(result.key)
                batch[result.key] = result.pixels
                self.report.images.encoded += 1
            if len(batch) == self.batch_size:
                self.encode_images(part, batch, behind)
                batch = {}
            if len(rows) == self.part_rows:
                break
        if batch:
            self.encode_images(part, batch, behind)
        if rows:
            self.encode_captions(part, [c for item, _ in rows for c in item.captions], behind)
            behind.do(part.add_items, self.source.name, rows)
            behind.do(part.commit)
        return bool(rows)

    def encode_images(
        self, part: PartWriter, batch: dict[str, NDArray[np.uint8]], behind: Behind
    ) -> None:
        names = [feature.name for feature in self.writer.features[Modality.IMAGES]]
        start = time.perf_counter()
        arrays = self.encoder.encode_images(np.stack(list(batch.values())), names)
        self.report.model_seconds += time.perf_counter() - start
        behind.do(part.add_images, list(batch), arrays)

    def encode_captions(
        self, part: PartWriter, captions: Sequence[Caption], behind: Behind
    ) -> None:
        names = [feature.name for feature in self.writer.features[Modality.CAPTIONS]]
        have = self.have[Modality.CAPTIONS]
        new = {c.key: c.text for c in captions if c.key not in have}
        have.update(new)
        self.report.captions.encoded += len(new)
        self.report.captions.reused += len(captions) - len(new)
        if new and names:
            start = time.perf_counter()
            arrays = self.encoder.encode_texts(list(new.values()), names)
            self.report.model_seconds += time.perf_counter() - start
            behind.do(part.add_captions, list(new), arrays)

    def fail(self, item: Item, failed: Failed) -> None:
        self.report.images.failed += 1
        self.report.captions.failed += len(item.captions)
        self.report.failures.append(
            Failure(source=self.source.name, item_id=item.id, uri=item.uri, reason=failed.reason)
        )


def chosen_features(
    encoder: Encoder, names: Sequence[str], store_dtype: str
) -> dict[Modality, list[Feature]]:
    """The features to store for each modality, floating-point ones in the given dtype.

    `tokens` of captions are their `token_ids` and `token_mask`.

    Raises:
        UsageError: a name that the encoder emits for neither modality.
    """
    offered = {modality: encoder.features(modality) for modality in Modality}
    wanted = [*names, *(("token_ids", "token_mask") if "tokens" in names else ())]
    allowed = set().union(*offered.values())
    if unknown := [name for name in names if name not in allowed]:
        raise UsageError(
            f"{encoder.spec.checkpoint} emits no feature {unknown[0]!r}; it emits "
            f"{', '.join(sorted(allowed))}"
        )

    def kept(feature: Feature) -> Feature:
        floating = np.issubdtype(np.dtype(feature.dtype), np.floating)
        return replace(feature, dtype=store_dtype) if floating else feature

    return {
        modality: [kept(features[name]) for name in dict.fromkeys(wanted) if name in features]
        for modality, features in offered.items()
    }
