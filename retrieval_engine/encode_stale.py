"""Encodes again what a changed model made stale, and nothing else.

A store knows its items: no source is needed. What an adapter on the text side leaves alone stays;
then no picture is read. Image vectors whose vision states are still good are made from those.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encode_records import EncodeReport
from retrieval_engine.encoders import Arrays, Encoder, ReadsTokens
from retrieval_engine.errors import DecodeError, SourceError, UsageError
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Failure, Feature, Modality
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Store, StoreWriter, open_store

_PART_ROWS = {Modality.IMAGES: 2_048, Modality.CAPTIONS: 16_384}
_TOKENS = "tokens"

Forms = dict[Modality, list[Feature]]


def encode_stale(
    store: Path | str, encoder: Encoder, *, batch_size: int = 0, progress: Progress | None = None
) -> EncodeReport:
    """Make a store the encoder's, encoding again those of its features that others made.

    The store keeps the features it has, by name and dtype. A killed run goes on when it is called
    again.

    Args:
        store: directory of the store.
        encoder: whose store it becomes.
        batch_size: images per forward pass; 0 lets the device decide.
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
    work = _Work(opened, encoder, batch_size or encoder.default_batch_size, report, progress)
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
                hint="encode into a new --store",
            )
        forms[modality] = [replace(offered[n], dtype=form.dtype) for n, form in kept.items()]
    return forms


class _Work:
    """One run over a store that is the encoder's already."""

    def __init__(
        self,
        store: Store,
        encoder: Encoder,
        batch_size: int,
        report: EncodeReport,
        progress: Progress,
    ) -> None:
        self._store, self._encoder, self._batch = store, encoder, batch_size
        self._report, self._progress = report, progress

    def encode(self, modality: Modality, forms: Sequence[Feature]) -> None:
        """Bring one side up to date."""
        keys, things = self._images() if modality is Modality.IMAGES else self._captions()
        lacking = {form.name: self._store.rows(modality, keys, form.name) < 0 for form in forms}
        stale = [form for form in forms if lacking[form.name].any()]
        wanted = np.zeros(len(keys), bool)
        for form in stale:
            wanted |= lacking[form.name]
        numbers = np.flatnonzero(wanted)
        images = modality is Modality.IMAGES
        tally = self._report.images if images else self._report.captions
        tally.reused += len(keys) - len(numbers)
        if not stale:
            return
        self._progress.start(f"encoding {modality}", len(numbers))
        features = {modality: stale}
        with StoreWriter.open(
            self._store.path, spec=self._encoder.spec, features=features
        ) as writer:
            for start in range(0, len(numbers), _PART_ROWS[modality]):
                chosen = numbers[start : start + _PART_ROWS[modality]].tolist()
                part = writer.part()
                batches = self._image_batches if images else self._caption_batches
                add = part.add_images if images else part.add_captions
                for some, arrays in batches(keys, things, chosen, [form.name for form in stale]):
                    add(some, arrays)
                    tally.encoded += len(some)
                part.commit()

    def _images(self) -> tuple[list[str], list[str]]:
        """Keys of the live items' images, each once, and where the bytes are."""
        table = self._store.items()
        found = dict(zip(table["key"].to_pylist(), table["uri"].to_pylist(), strict=True))
        return list(found), list(found.values())

    def _captions(self) -> tuple[list[str], list[str]]:
        """Keys of the live items' captions, each once, and their texts."""
        captions = (c for own in self._store.items()["captions"].to_pylist() for c in own)
        found = {caption["key"]: caption["text"] for caption in captions}
        return list(found), list(found.values())

    def _caption_batches(
        self, keys: Sequence[str], texts: Sequence[str], numbers: Sequence[int], names: list[str]
    ) -> Iterator[tuple[list[str], Arrays]]:
        start = time.perf_counter()
        arrays = self._encoder.encode_texts([texts[i] for i in numbers], names)
        self._report.model_seconds += time.perf_counter() - start
        self._progress.advance(len(numbers))
        yield [keys[i] for i in numbers], arrays

    def _image_batches(
        self, keys: Sequence[str], uris: Sequence[str], numbers: Sequence[int], names: list[str]
    ) -> Iterator[tuple[list[str], Arrays]]:
        from_tokens = self._can_use_tokens(keys, numbers, names)
        for start in range(0, len(numbers), self._batch):
            some = list(numbers[start : start + self._batch])
            self._progress.advance(len(some))
            if from_tokens:
                yield [keys[i] for i in some], self._of_tokens([keys[i] for i in some], names)
                continue
            read = ((keys[i], self._pixels(uris[i])) for i in some)
            good = {key: pixels for key, pixels in read if pixels is not None}
            if good:
                begun = time.perf_counter()
                arrays = self._encoder.encode_images(np.stack(list(good.values())), names)
                self._report.model_seconds += time.perf_counter() - begun
                yield list(good), arrays

    def _can_use_tokens(
        self, keys: Sequence[str], numbers: Sequence[int], names: Sequence[str]
    ) -> bool:
        if _TOKENS in names or not isinstance(self._encoder, ReadsTokens):
            return False
        if _TOKENS not in self._store.features(Modality.IMAGES):
            return False
        rows = self._store.rows(Modality.IMAGES, [keys[i] for i in numbers], _TOKENS)
        return bool((rows >= 0).all())

    def _of_tokens(self, keys: Sequence[str], names: Sequence[str]) -> Arrays:
        assert isinstance(self._encoder, ReadsTokens)
        rows = self._store.rows(Modality.IMAGES, keys, _TOKENS)
        tokens = self._store.read(Modality.IMAGES, _TOKENS, rows)
        begun = time.perf_counter()
        arrays = self._encoder.encode_tokens(tokens, names)
        self._report.model_seconds += time.perf_counter() - begun
        return arrays

    def _pixels(self, uri: str) -> NDArray[np.uint8] | None:
        """Pixels of a picture; None where it cannot be read any more, and that is reported."""
        try:
            return self._encoder.preprocessor.pixels(decode(read_bytes(uri)))
        except (DecodeError, SourceError) as error:
            self._report.images.failed += 1
            failure = Failure(source="", item_id=uri, uri=uri, reason=error.message)
            self._report.failures.append(failure)
            return None
