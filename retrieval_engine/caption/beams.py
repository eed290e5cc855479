"""Beam search over the candidates of one image, under either rule of what a sentence is worth.

ORIGINAL restates `BeamSearchScorer` of transformers 4.15, TRANSFORMERS what `_beam_search` of
transformers 5 does to each image; tests compare with both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from retrieval_engine.caption.decoding import BeamRule


@dataclass(frozen=True, slots=True)
class Sentence:
    """A caption as token ids, with the score that beam search or sampling gave it.

    Attributes:
        ids: its tokens after the prompt, without the end token.
        score: log-probability over its length, as the method has it; larger is better.
    """

    ids: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence under way and one more token.

    Attributes:
        beam: which of the image's sentences it goes on with.
        token: the token.
        score: sum of log-probabilities.
    """

    beam: int
    token: int
    score: float


@dataclass(slots=True, kw_only=True)
class BeamSearch:
    """Beam search over the sentences of one image.

    Attributes:
        width: number of beams.
        end_id: token that ends a sentence.
        prompt_length: tokens before the first that is written.
        max_length: of a sentence, the prompt included.
        length_penalty: exponent of the length.
        rule: how lengths are counted and when to end.
        beams: tokens written by each running beam.
        scores: log-probabilities of the running beams.
        finished: the best sentences so far, best first.
        is_done: nothing better can come, or no token more is allowed.
    """

    width: int
    end_id: int
    prompt_length: int
    max_length: int
    length_penalty: float
    rule: BeamRule
    beams: list[tuple[int, ...]] = field(default_factory=lambda: [()])
    scores: list[float] = field(default_factory=lambda: [0.0])
    finished: list[Sentence] = field(default_factory=list)
    is_done: bool = False

    def advance(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Extend every beam by one token.

        Args:
            candidates: the 2 x width best continuations, best first.

        Returns:
            The width candidates that the running beams go on with.
        """
        length = self.prompt_length + len(self.beams[0])  # before this step
        ends_here = length + 1 >= self.max_length
        going = [c for c in candidates if c.token != self.end_id][: self.width]
        for candidate in candidates[: self.width]:
            if candidate.token == self.end_id or (ends_here and self.rule is BeamRule.TRANSFORMERS):
                self._finish(candidate, length)
        self.beams = [(*self.beams[c.beam], c.token) for c in going]
        self.scores = [c.score for c in going]
        if self.rule is BeamRule.ORIGINAL:
            self.is_done = self._is_beaten(candidates[0].score, length)
            if ends_here and not self.is_done:
                for ids, score in zip(self.beams, self.scores, strict=True):
                    self._keep(Sentence(ids, score / self._worth(length + 1)))
        else:
            self.is_done = self._is_beaten(going[0].score, len(self.beams[0]))
        self.is_done = self.is_done or ends_here
        return going

    def _finish(self, candidate: Candidate, length: int) -> None:
        """Put a sentence that has ended among the best."""
        ids = self.beams[candidate.beam]
        if self.rule is BeamRule.TRANSFORMERS:
            worth = self._worth(len(ids) + 1)
            if candidate.token != self.end_id:
                ids = (*ids, candidate.token)
        else:
            worth = self._worth(length)
        self._keep(Sentence(ids, candidate.score / worth))

    def _keep(self, sentence: Sentence) -> None:
        self.finished.append(sentence)
        self.finished.sort(key=lambda s: -s.score)  # stable: of equals the earlier is first
        del self.finished[self.width :]

    def _is_beaten(self, best_sum: float, length: int) -> bool:
        """Whether the best running beam is worth no more than the worst sentence kept."""
        if len(self.finished) < self.width:
            return False
        return self.finished[-1].score >= best_sum / self._worth(length)

    def _worth(self, length: int) -> float:
        return float(max(length, 1) ** self.length_penalty)
