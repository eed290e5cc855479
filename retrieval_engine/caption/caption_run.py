"""Captions many images: loads ahead, writes in batches, reports each failure alone.

images ──► load (look up, or read and decode: a pool of workers, ahead of the model)
       ──► vision states (out of the store, or encoded once)
       ──► sentences (a batch at a time) ──► ranked by the judge, where there is one
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.generating import complete, write_captions
from retrieval_engine.caption.ranking import Judge
from retrieval_engine.caption.source_images import Loaded, LoadImage, SourceImage
from retrieval_engine.encoding.image_tokens import VisionStates
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.captioner import Captioner
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
        captioner: the model.
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
        captioner: Captioner,
        options: DecodingOptions,
        *,
        store: Store | None = None,
        judge: Judge | None = None,
        judge_own: bool = False,
        batch_size: int = 0,
        workers: int = 0,
    ) -> None:
        self._captioner = captioner
        self._options = complete(options, captioner)
        self._judge = judge
        self._judge_own = judge_own
        self._workers = workers
        self._batch_size = batch_size or max(1, captioner.captions_at_once // options.width)
        self.states = VisionStates(captioner, store)
        self._sides = [self.states]
        if judge is not None:
            own = VisionStates(judge.encoder, store)
            if own.fingerprint != self.states.fingerprint:
                self._sides.append(own)

    @property
    def settings(self) -> dict[str, Json]:
        """All that decides the captions, and where it came from."""
        spec = self._captioner.spec
        judge = self._judge.encoder.spec if self._judge else None
        return {
            "model": spec.checkpoint,
            "revision": spec.revision,
            "fingerprint": spec.fingerprint,
            "decoding": self._options.to_json(),
            "judge": judge.checkpoint if judge else None,
            "judge_fingerprint": judge.fingerprint if judge else None,
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
        return map(self.write, self._batches(images, progress or Silent()))

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
                    progress.advance(len(batch))
                    batch, failures = [], []
        if batch or failures:
            yield batch, failures
            progress.advance(len(batch))

    def states_of(
        self, images: Iterable[SourceImage], progress: Progress
    ) -> Iterator[tuple[list[SourceImage], torch.Tensor]]:
        """Images a batch at a time with their (n, t, w) states; those that fail are left out."""
        for batch, _ in self._batches(images, progress):
            if batch:
                rows = np.array([loaded.row for _, loaded in batch], dtype=np.int64)
                states = self.states.read(rows, [loaded.pixels[0] for _, loaded in batch])
                yield [image for image, _ in batch], torch.from_numpy(states)

    @property
    def encoded(self) -> int:
        """Number of images whose vision states were not stored and had to be made."""
        return self.states.encoded

    def write(self, loaded: _Batch) -> Done:
        """Caption the images of one batch."""
        batch, failures = loaded
        if not batch:
            return Done(captioned=[], failures=failures)
        rows = np.array([loaded.row for _, loaded in batch], dtype=np.int64)
        states = [
            side.read(rows, [loaded.pixels[number] for _, loaded in batch])
            for number, side in enumerate(self._sides)
        ]
        names = [image.name for image, _ in batch]
        found = write_captions(self._captioner, torch.from_numpy(states[0]), names, self._options)
        prompt = self._options.prompt or ""
        texts = [
            tuple(self._captioner.text(s.ids, prompt).strip() for s in sentences)
            for sentences in found
        ]
        scores = [tuple(sentence.score for sentence in sentences) for sentences in found]
        captioned = [
            Captioned(image=image, captions=captions, scores=own)
            for (image, _), captions, own in zip(batch, texts, scores, strict=True)
        ]
        if self._judge is None:
            return Done(captioned=captioned, failures=failures)
        own = [
            tuple(caption.text for caption in image.item.captions) if self._judge_own else ()
            for image, _ in batch
        ]
        both = [(*written, *given) for written, given in zip(texts, own, strict=True)]
        found_matches = self._judge.probabilities(states[-1], both)
        captioned = [_ranked(c, m) for c, m in zip(captioned, found_matches, strict=True)]
        return Done(captioned=captioned, failures=failures)


def _ranked(captioned: Captioned, matches: Sequence[float]) -> Captioned:
    """The same with its sentences ordered by the judge; of equals the likelier comes first."""
    n = len(captioned.captions)
    order = sorted(range(n), key=lambda i: -matches[i])
    return replace(
        captioned,
        captions=tuple(captioned.captions[i] for i in order),
        scores=tuple(captioned.scores[i] for i in order),
        matches=tuple(matches[i] for i in order),
        own_matches=tuple(matches[n:]),
    )
