"""Captions many images: loads ahead, writes in batches, reports each failure alone.

images ──► load (look up, or read and decode: a pool of workers, ahead of the model)
       ──► vision states (out of the store, or encoded once)
       ──► sentences (a batch at a time) ──► ranked by the judge, where there is one
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retrieval_engine.caption.author import WRITTEN, Author, AuthorFacts, CaptionWork, Written
from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.ranking import LENGTH_WEIGHT, MATCH_WEIGHT, Judge
from retrieval_engine.caption.source_images import Loaded, LoadImage, SourceImage
from retrieval_engine.encoding.image_tokens import VisionStates
from retrieval_engine.encoding.model_pool import ModelPool
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.captioner import Captioner
from retrieval_engine.models.lanes import in_lanes
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Failure, Json
from retrieval_engine.store import Store
from retrieval_engine.workers import Failed, open_pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """An image and what was written about it.

    Attributes:
        image: which.
        captions: different sentences, best first.
        scores: log-probability of each over its length, as the decoding counts it.
        matches: probability that each matches the image, by the judge; none without one.
        own_matches: the same of the captions that the image came with, where asked for.
    """

    image: SourceImage
    captions: tuple[str, ...]
    scores: tuple[float, ...]
    matches: tuple[float, ...] = ()
    own_matches: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A batch of captioned images, and the images that failed meanwhile.

    Attributes:
        captioned: in the order of the images.
        failures: images of the same stretch that could not be read.
    """

    captioned: list[Captioned]
    failures: list[Failure]


_Batch = tuple[Sequence[tuple[SourceImage, Loaded]], list[Failure]]


class CaptionRun:
    """Writes captions for images.

    Args:
        captioner: the model; or a pool of devices that each hold an `Author`, whose options and
            judge then count.
        options: how to choose words.
        store: its `tokens` are used when the captioner's tower made them.
        judge: orders the sentences of an image.
        judge_own: have the judge look at the captions the image came with as well.
        batch_size: images at once; 0 lets the device decide.
        workers: decode workers; 0 means one for each core.

    Attributes:
        states: where the captioner's vision states come from.
    """

    def __init__(
        self,
        captioner: Captioner | ModelPool[AuthorFacts],
        options: DecodingOptions,
        *,
        store: Store | None = None,
        judge: Judge | None = None,
        judge_own: bool = False,
        batch_size: int = 0,
        workers: int = 0,
    ) -> None:
        self._pool: ModelPool[AuthorFacts] | None = None
        if isinstance(captioner, ModelPool):
            self._pool, facts = captioner, captioner.facts
            models: list[Any] = [facts.captioner, facts.judge]
        else:
            self._author = Author(captioner, options, judge)
            facts, models = self._author.facts, [captioner, judge.encoder if judge else None]
        self.facts = facts
        self._judge_own = judge_own
        self._workers = workers
        self._batch_size = batch_size or max(1, facts.at_once // facts.options.width)
        self.states = VisionStates(models[0], store)
        self._sides = [self.states]
        if models[1] is not None:
            own = VisionStates(models[1], store)
            if own.fingerprint != self.states.fingerprint:
                self._sides.append(own)

    @property
    def settings(self) -> dict[str, Json]:
        """All that decides the captions, and where it came from."""
        spec = self.facts.captioner.spec
        judge = self.facts.judge.spec if self.facts.judge else None
        # What orders nothing decides nothing: a run without it keeps its name.
        ordered = judge is not None and self.facts.options.num_captions > 1
        weight: dict[str, Json] = (
            {"match_weight": MATCH_WEIGHT, "length_weight": LENGTH_WEIGHT} if ordered else {}
        )
        return {
            "model": spec.checkpoint,
            "revision": spec.revision,
            "fingerprint": spec.fingerprint,
            "decoding": self.facts.options.to_json(),
            "judge": judge.checkpoint if judge else None,
            "judge_fingerprint": judge.fingerprint if judge else None,
            **weight,
        }

    @property
    def name(self) -> str:
        """Digest of the settings that decide, 12 hex digits: equal names, equal captions."""
        aside = ("model", "revision", "judge")
        return digest({k: v for k, v in self.settings.items() if k not in aside})[:12]

    def __call__(
        self, images: Iterable[SourceImage], progress: Progress | None = None
    ) -> Iterator[Done]:
        """Caption images, a batch at a time.

        Args:
            images: read lazily, a bounded number ahead.
            progress: told about every image.
        """
        progress = progress or Silent()
        batches = self._batches(images, progress)
        found = self._here(batches) if self._pool is None else self._shared(batches, progress)
        with closing(found):
            for done in found:
                yield done
                progress.advance(len(done.captioned))

    def _here(self, batches: Iterator[_Batch]) -> Generator[Done, None, None]:
        """What the models of this process make of batches, in order."""

        def written(given: tuple[_Batch, CaptionWork | None]) -> Iterable[Written]:
            _, work = given
            found: Iterable[Written] = () if work is None else self._author.compute(work)[WRITTEN]
            return found

        works = ((batch, self._work(batch)) for batch in batches)
        for ((loaded, failures), _), found in in_lanes(written, works, self._author):
            images = [image for image, _ in loaded]
            yield Done(captioned=_captioned(images, found), failures=failures)

    def _shared(self, batches: Iterator[_Batch], progress: Progress) -> Generator[Done, None, None]:
        """What the devices of a pool make of batches, in order."""
        pool = self._pool
        assert pool is not None
        given: deque[_Batch] = deque()

        def works() -> Iterator[CaptionWork | None]:
            for batch in batches:
                given.append(batch)
                yield self._work(batch)

        for _, found in pool.imap(works(), progress):
            progress.detail(pool.rates)
            loaded, failures = given.popleft()
            if found is None:
                yield Done(captioned=[], failures=failures)
                continue
            bad = [image for image, _ in loaded if image.name in found.bad]
            failures += [Failure.of(i.item, i.source, found.bad[i.name]) for i in bad]
            progress.advance(len(bad))
            images = [image for image, _ in loaded if image.name not in found.bad]
            written: Iterable[Written] = found.arrays[WRITTEN] if images else ()
            yield Done(captioned=_captioned(images, written), failures=failures)

    def _batches(self, images: Iterable[SourceImage], progress: Progress) -> Iterator[_Batch]:
        """Images as they are loaded, and those that could not be."""
        batch: list[tuple[SourceImage, Loaded]] = []
        failures: list[Failure] = []
        with open_pool("threads", self._workers, ahead=2 * self._batch_size) as pool:
            for image, loaded in pool.imap(LoadImage(self._sides), images):
                if isinstance(loaded, Failed):
                    failures.append(Failure.of(image.item, image.source, loaded.reason))
                    progress.advance()
                    continue
                batch.append((image, loaded))
                if len(batch) == self._batch_size:
                    yield batch, failures
                    batch, failures = [], []
        if batch or failures:
            yield batch, failures

    def states_of(
        self, images: Iterable[SourceImage], progress: Progress
    ) -> Iterator[tuple[list[SourceImage], torch.Tensor]]:
        """Images a batch at a time with their (n, t, w) states; those that fail are left out."""
        for batch, _ in self._batches(images, progress):
            if batch:
                rows = np.array([loaded.row for _, loaded in batch], dtype=np.int64)
                states = self.states.read(rows, [loaded.pixels[0] for _, loaded in batch])
                yield [image for image, _ in batch], torch.from_numpy(states)
                progress.advance(len(batch))

    @property
    def encoded(self) -> int:
        """Number of images whose vision states were not stored and had to be made."""
        return self.states.encoded

    def _work(self, loaded: _Batch) -> CaptionWork | None:
        """What an author needs for a batch; None where there is nothing to do."""
        batch, _ = loaded
        if not batch:
            return None
        rows = np.array([loaded.row for _, loaded in batch], dtype=np.int64)
        sides = [
            side.gathered(rows, [loaded.pixels[number] for _, loaded in batch])
            for number, side in enumerate(self._sides)
        ]
        own = [
            tuple(caption.text for caption in image.item.captions) if self._judge_own else ()
            for image, _ in batch
        ]
        return CaptionWork(keys=[image.name for image, _ in batch], sides=sides, own=own)


def _captioned(images: Iterable[SourceImage], written: Iterable[Written]) -> list[Captioned]:
    return [
        Captioned(
            image=image,
            captions=found.captions,
            scores=found.scores,
            matches=found.matches,
            own_matches=found.own_matches,
        )
        for image, found in zip(images, written, strict=True)
    ]
