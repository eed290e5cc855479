"""What writes captions from vision states, in this process or in one of a pool: captioner and judge."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.generating import complete, write_captions
from retrieval_engine.caption.ranking import Judge, combined
from retrieval_engine.encoding.device import Facts
from retrieval_engine.encoding.image_tokens import Seen
from retrieval_engine.encoding.steps import Work
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models import Arrays
from retrieval_engine.models.captioner import Captioner
from retrieval_engine.models.lanes import lanes_of
from retrieval_engine.records import Modality

WRITTEN = "written"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written about an image; see `Captioned`."""

    captions: tuple[str, ...]
    scores: tuple[float, ...]
    matches: tuple[float, ...] = ()
    own_matches: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionWork(Work):
    """A batch of images; the keys are their names, which with the seed decide what is drawn.

    Attributes:
        sides: what the captioner is to see, and the judge where its tower is another.
        own: of each image the captions that the judge looks at as well.
    """

    sides: Sequence[Seen]
    own: Sequence[tuple[str, ...]]
    modality: Modality = Modality.IMAGES

    def part(self, some: slice) -> Self:
        """See `Work`."""
        sides = [side.part(some) for side in self.sides]
        return replace(self, keys=self.keys[some], sides=sides, own=self.own[some])


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorFacts:
    """What must be known of an author where it is not; see `device.AnyFacts`.

    Attributes:
        captioner: of the model that writes.
        judge: of the one that ranks, or None.
        options: how words are chosen, complete.
        at_once: sentences a batch that suit the device.
        prompt: what the model's sentences go on from.
        says_prompt: whether its files say so.
    """

    captioner: Facts
    judge: Facts | None
    options: DecodingOptions
    at_once: int
    prompt: str
    says_prompt: bool

    @property
    def specs(self) -> Sequence[EncoderSpec]:
        """See `AnyFacts`."""
        return [facts.spec for facts in (self.captioner, self.judge) if facts]


class Author:
    """A captioner and a judge that are open; see `device.Opened`.

    Args:
        captioner: the model.
        options: how to choose words.
        judge: orders the sentences of an image; None leaves them as they are.
    """

    def __init__(
        self, captioner: Captioner, options: DecodingOptions, judge: Judge | None = None
    ) -> None:
        self._captioner, self._judge = captioner, judge
        self.facts = AuthorFacts(
            captioner=Facts.of(captioner),
            judge=Facts.of(judge.encoder) if judge else None,
            options=complete(options, captioner),
            at_once=captioner.captions_at_once,
            prompt=captioner.prompt,
            says_prompt=captioner.says_prompt,
        )

    @property
    def batches_at_once(self) -> int:
        """Threads that may write at the same time; see `models.lanes`."""
        return lanes_of(self._captioner)

    def compute(self, work: CaptionWork) -> Arrays:
        """(n,) objects, `Written` of each image."""
        captioner, judge, options = self._captioner, self._judge, self.facts.options
        models: list[Any] = [captioner, *([judge.encoder] if judge else [])]
        states = [seen.states_by(model) for seen, model in zip(work.sides, models, strict=False)]
        found = write_captions(captioner, torch.from_numpy(states[0]), work.keys, options)
        prompt = options.prompt or ""
        written = [
            Written(
                captions=tuple(captioner.text(s.ids, prompt).strip() for s in sentences),
                scores=tuple(sentence.score for sentence in sentences),
            )
            for sentences in found
        ]
        if judge is not None:
            both = [(*w.captions, *own) for w, own in zip(written, work.own, strict=True)]
            matches = judge.probabilities(states[-1], both)
            written = [_ranked(w, m) for w, m in zip(written, matches, strict=True)]
        array = np.empty(len(written), dtype=object)
        array[:] = written
        return {WRITTEN: array}


def _ranked(written: Written, matches: Sequence[float]) -> Written:
    """The same with its sentences ordered by likelihood and match; see `ranking.combined`."""
    n = len(written.captions)
    both = combined(written.captions, written.scores, matches[:n])
    order = sorted(range(n), key=lambda i: -both[i])
    return Written(
        captions=tuple(written.captions[i] for i in order),
        scores=tuple(written.scores[i] for i in order),
        matches=tuple(matches[i] for i in order),
        own_matches=tuple(matches[n:]),
    )
