"""Captions many pictures: loads ahead, writes in batches, reports each failure alone.

pictures ──► load (look up, or read and decode: a pool of workers, ahead of the model)
         ──► vision states (out of the store, or encoded once)
         ──► sentences (a batch at a time) ──► ranked by the judge, where there is one
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.generating import complete, write_captions
from retrieval_engine.caption.images import Loaded, LoadPicture, Picture, VisionStates
from retrieval_engine.caption.ranking import Judge
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.captioner import Captioner
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Failure, Json
from retrieval_engine.store import Store
from retrieval_engine.workers import Failed, open_pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """A picture and what was written about it.

    Attributes:
        picture: which.
        captions: different sentences, best first.
        scores: log-probability of each over its length, as the decoding counts it.
        matches: probability that each matches the picture, by the judge; none without one.
        own_matches: the same of the captions that the picture came with, where asked for.
    """

    picture: Picture
    captions: tuple[str, ...]
    scores: tuple[float, ...]
    matches: tuple[float, ...] = ()
    own_matches: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A batch that is finished.

    Attributes:
        captioned: in the order of the pictures.
        failures: pictures of the same stretch that could not be read.
    """

    captioned: list[Captioned]
    failures: list[Failure]


class CaptionRun:
    """Writes captions for pictures.

    Args:
        captioner: the model.
        options: how to choose words.
        store: its `tokens` are used when the captioner's tower made them.
        judge: orders the sentences of a picture.
        judge_own: have the judge look at the captions the picture came with as well.
        batch_size: pictures at once; 0 lets the device decide.
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
        self, pictures: Iterable[Picture], progress: Progress | None = None
    ) -> Iterator[Done]:
        """Caption pictures, a batch at a time.

        Args:
            pictures: read lazily, a bounded number ahead.
            progress: told about every picture.
        """
        progress = progress or Silent()
        batch: list[tuple[Picture, Loaded]] = []
        failures: list[Failure] = []
        with open_pool("threads", self._workers, ahead=2 * self._batch_size) as pool:
            for picture, loaded in pool.imap(LoadPicture(self._sides), pictures):
                if isinstance(loaded, Failed):
                    failures.append(_failure(picture, loaded))
                    progress.advance()
                    continue
                batch.append((picture, loaded))
                if len(batch) == self._batch_size:
                    yield Done(captioned=self.write(batch), failures=failures)
                    progress.advance(len(batch))
                    batch, failures = [], []
        if batch or failures:
            yield Done(captioned=self.write(batch), failures=failures)
            progress.advance(len(batch))

    @property
    def encoded(self) -> int:
        """Number of pictures whose vision states were not stored and had to be made."""
        return self.states.encoded

    def write(self, batch: Sequence[tuple[Picture, Loaded]]) -> list[Captioned]:
        """Caption the pictures of one batch."""
        if not batch:
            return []
        rows = [loaded.row for _, loaded in batch]
        states = [
            side.read(rows, [loaded.pixels[number] for _, loaded in batch])
            for number, side in enumerate(self._sides)
        ]
        names = [picture.name for picture, _ in batch]
        found = write_captions(self._captioner, torch.from_numpy(states[0]), names, self._options)
        prompt = self._options.prompt or ""
        texts = [
            tuple(self._captioner.text(s.ids, prompt).strip() for s in sentences)
            for sentences in found
        ]
        scores = [tuple(sentence.score for sentence in sentences) for sentences in found]
        captioned = [
            Captioned(picture=picture, captions=captions, scores=own)
            for (picture, _), captions, own in zip(batch, texts, scores, strict=True)
        ]
        if self._judge is None:
            return captioned
        own = [
            tuple(caption.text for caption in picture.item.captions) if self._judge_own else ()
            for picture, _ in batch
        ]
        both = [(*written, *given) for written, given in zip(texts, own, strict=True)]
        found_matches = self._judge.probabilities(states[-1], both)
        return [_ranked(c, found) for c, found in zip(captioned, found_matches, strict=True)]


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


def _failure(picture: Picture, failed: Failed) -> Failure:
    return Failure(
        source=picture.source,
        item_id=picture.item.id,
        uri=picture.item.uri,
        reason=failed.reason,
    )
