"""Encodes again what a changed model made stale, and nothing else.

A store knows its items: no source is needed. What an adapter on the text side leaves alone stays;
then no picture is read. Image vectors whose vision states are still good are made from those.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.encode_report import EncodeReport
from retrieval_engine.errors import UsageError
from retrieval_engine.models import Arrays, Encoder, ReadsTokens
from retrieval_engine.models.lanes import in_lanes
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Failure, Feature, Modality
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Store, StoreWriter, open_store
from retrieval_engine.workers import Failed, open_pool

_PART_ROWS = {Modality.IMAGES: 2_048, Modality.CAPTIONS: 16_384}
_TOKENS = "tokens"

Forms = dict[Modality, list[Feature]]
Owner = tuple[str, str, str]  # source, item id, uri
Batches = Callable[[list[int], list[str]], Iterator[tuple[list[str], Arrays]]]


def encode_stale(
    store: Path | str,
    encoder: Encoder,
    *,
    batch_size: int = 0,
    workers: int = 0,
    progress: Progress | None = None,
) -> EncodeReport:
    """Make a store the encoder's, encoding again those of its features that others made.

    The store keeps the features it has, by name and dtype. A killed run goes on when it is called
    again.

    Args:
        store: directory of the store.
        encoder: whose store it becomes.
        batch_size: images per forward pass; 0 lets the device decide.
        workers: threads that read and decode pictures; 0 means one for each core.
        progress: told about every row.

    Raises:
        UsageError: the encoder does not emit a feature that the store has.
        StoreNotFound: there is no store.
    """
    progress, start = progress or Silent(), time.perf_counter()
    before = open_store(store)
    forms = _forms(before, encoder)
    # Adopting the encoder takes all features; what follows writes the stale ones alone.
    StoreWriter.open(before.path, spec=encoder.spec, features=forms, adopt_spec=True).close()
    opened = open_store(store)
    report = EncodeReport(store=str(store), fingerprint=encoder.spec.fingerprint)
    work = _Work(
        opened, encoder, batch_size or encoder.default_batch_size, workers, report, progress
    )
    for modality in Modality:
        work.encode(modality, forms[modality])
    progress.stop()
    report.seconds = time.perf_counter() - start
    return report


def _forms(store: Store, encoder: Encoder) -> Forms:
    """The store's features as this encoder makes them."""
    forms: Forms = {}
    for modality in Modality:
        offered, kept = encoder.features(modality), store.features(modality)
        if unknown := sorted(set(kept) - set(offered)):
            raise UsageError(
                f"{store.path} has {unknown[0]} of {modality}, which {encoder.spec.checkpoint} does "
                f"not emit; it emits {', '.join(offered)}",
                hint="encode into a new `store`",
            )
        forms[modality] = [replace(offered[n], dtype=form.dtype) for n, form in kept.items()]
    return forms


@dataclass
class _Work:
    """One run over a store that is the encoder's already."""

    store: Store
    encoder: Encoder
    batch: int
    workers: int
    report: EncodeReport
    progress: Progress
    failures: list[Failure] = field(default_factory=list)
    settled: list[tuple[str, str]] = field(default_factory=list)

    def encode(self, modality: Modality, forms: Sequence[Feature]) -> None:
        """Bring one side up to date."""
        images = modality is Modality.IMAGES
        keys, batches = self._images() if images else self._captions()
        lacking = {form.name: self.store.rows(modality, keys, form.name) < 0 for form in forms}
        stale = [form for form in forms if lacking[form.name].any()]
        wanted = np.zeros(len(keys), bool)
        for form in stale:
            wanted |= lacking[form.name]
        numbers = np.flatnonzero(wanted)
        tally = self.report.images if images else self.report.captions
        tally.reused += len(keys) - len(numbers)
        if not stale:
            return
        self.progress.start(f"encoding {modality}", len(numbers))
        features = {modality: stale}
        spec = self.encoder.spec
        with StoreWriter.open(self.store.path, spec=spec, features=features) as writer:
            for start in range(0, len(numbers), _PART_ROWS[modality]):
                chosen = numbers[start : start + _PART_ROWS[modality]].tolist()
                part = writer.part()
                for some, arrays in batches(chosen, [form.name for form in stale]):
                    part.add(modality, some, arrays)
                    tally.encoded += len(some)
                part.commit(self.failures, self.settled)
                self.report.failures.extend(self.failures)
                self.failures, self.settled = [], []

    def _images(self) -> tuple[list[str], Batches]:
        """Keys of the live items' images, each once, and what encodes some of them."""
        table = self.store.items()
        columns = (table[name].to_pylist() for name in ("key", "source", "id", "uri"))
        found: dict[str, list[Owner]] = {}
        for key, *owner in zip(*columns, strict=True):
            found.setdefault(key, []).append((owner[0], owner[1], owner[2]))
        keys = list(found)
        return keys, partial(self._image_batches, keys, list(found.values()))

    def _captions(self) -> tuple[list[str], Batches]:
        """Keys of the live items' captions, each once, and what encodes some of them."""
        captions = (c for own in self.store.items()["captions"].to_pylist() for c in own)
        found = {caption["key"]: caption["text"] for caption in captions}
        keys = list(found)
        return keys, partial(self._caption_batches, keys, list(found.values()))

    def _caption_batches(
        self, keys: Sequence[str], texts: Sequence[str], numbers: Sequence[int], names: list[str]
    ) -> Iterator[tuple[list[str], Arrays]]:
        with self.report.timing():
            arrays = self.encoder.encode_texts([texts[i] for i in numbers], names)
        self.progress.advance(len(numbers))
        yield [keys[i] for i in numbers], arrays

    def _image_batches(
        self,
        keys: Sequence[str],
        owners: Sequence[list[Owner]],
        numbers: Sequence[int],
        names: list[str],
    ) -> Iterator[tuple[list[str], Arrays]]:
        if self._can_use_tokens(keys, numbers, names):
            for start in range(0, len(numbers), self.batch):
                some = [keys[i] for i in numbers[start : start + self.batch]]
                self.progress.advance(len(some))
                yield some, self._of_tokens(some, names)
            return
        loaded = self._loaded(keys, owners, numbers)
        for good, (arrays, seconds) in in_lanes(
            partial(self._of_pixels, names), loaded, self.encoder
        ):
            self.report.model_seconds += seconds
            yield list(good), arrays

    def _loaded(
        self, keys: Sequence[str], owners: Sequence[list[Owner]], numbers: Sequence[int]
    ) -> Iterator[dict[str, NDArray[np.uint8]]]:
        """Batches of pixels by key."""
        good: dict[str, NDArray[np.uint8]] = {}
        with open_pool("threads", self.workers, ahead=2 * self.batch) as pool:
            for i, pixels in pool.imap(lambda i: self._pixels(owners[i]), numbers):
                self.progress.advance()
                if isinstance(pixels, Failed):
                    self._failed(owners[i], pixels)
                    continue
                good[keys[i]] = pixels
                self.settled.extend((source, item_id) for source, item_id, _ in owners[i])
                if len(good) == self.batch:
                    yield good
                    good = {}
        if good:
            yield good

    def _of_pixels(
        self, names: Sequence[str], good: dict[str, NDArray[np.uint8]]
    ) -> tuple[Arrays, float]:
        start = time.perf_counter()
        arrays = self.encoder.encode_images(np.stack(list(good.values())), names)
        return arrays, time.perf_counter() - start

    def _can_use_tokens(
        self, keys: Sequence[str], numbers: Sequence[int], names: Sequence[str]
    ) -> bool:
        if _TOKENS in names or not isinstance(self.encoder, ReadsTokens):
            return False
        if _TOKENS not in self.store.features(Modality.IMAGES):
            return False
        rows = self.store.rows(Modality.IMAGES, [keys[i] for i in numbers], _TOKENS)
        return bool((rows >= 0).all())

    def _of_tokens(self, keys: Sequence[str], names: Sequence[str]) -> Arrays:
        assert isinstance(self.encoder, ReadsTokens)
        rows = self.store.rows(Modality.IMAGES, keys, _TOKENS)
        tokens = self.store.read(Modality.IMAGES, _TOKENS, rows)
        with self.report.timing():
            return self.encoder.encode_tokens(tokens, names)

    def _pixels(self, owners: Sequence[Owner]) -> NDArray[np.uint8]:
        """Pixels of a picture that all these items show.

        Raises:
            DecodeError, SourceError: it cannot be read any more.
        """
        look = self.encoder.preprocessor
        data = read_bytes(owners[0][2])
        return look.pixels(decode(data, least_side=look.least_side))

    def _failed(self, owners: Sequence[Owner], failed: Failed) -> None:
        self.report.images.failed += 1
        for source, item_id, uri in owners:
            failure = Failure(source=source, item_id=item_id, uri=uri, reason=failed.reason)
            self.failures.append(failure)
