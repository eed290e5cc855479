"""A reward for whole captions: what scores better than an image's other captions gets likelier.

Self-critical sequence training (Rennie et al., CVPR 2017): the score, CIDEr-D against the training
set's references, cannot be differentiated, so captions are drawn from the model and the gradient of
each one's log-likelihood is weighed by how much better it scores than a baseline. Here that is the
mean of the other captions drawn for the image (Luo, "A Better Variant of Self-Critical Sequence
Training", 2020), which needs no caption of its own. The end of a sentence counts as a word on both
sides, as in the authors' later code: without it the reward teaches to break off.

Captions are drawn at a temperature of a half, and their likelihood is that of this distribution: near
what greedy decoding and beams will write. At one, a model that was trained with label smoothing draws a
word from nowhere in most captions, and would learn no more than to leave that. There is no dropout in
a step: what is made likelier is what was drawn.
"""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from retrieval_engine.metrics.cider import CiderD
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.train.finetune.captioned import CaptionedImages, Group, Ints
from retrieval_engine.train.finetune.captioning import CaptionObjective, sentence, written

_TEMPERATURE = 0.5
_END = "</s>"  # no word that the tokenizer of the metrics gives


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewardBatch:
    """One process's part of a batch.

    Attributes:
        loaded: what the loader gave.
        images: (i,) their numbers in the training set.
    """

    loaded: NDArray[Any]
    images: Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """Captions drawn for i images, n of each.

    Attributes:
        ids: (i, n, l) ids, given ones and end included.
        counts: (i, n, l) bool, which of them were drawn; the first end is, what follows is not.
        scores: (i, n) float32.
    """

    ids: Tensor
    counts: Tensor
    scores: Tensor

    def __getitem__(self, images: slice) -> "Drawn":
        """Those of some of the images."""
        return Drawn(ids=self.ids[images], counts=self.counts[images], scores=self.scores[images])

    @property
    def gains(self) -> Tensor:
        """(i, n) by how much each beats the mean of its image's others."""
        n = self.scores.shape[1]
        return (self.scores - self.scores.mean(1, keepdim=True)) * (n / (n - 1))


class RewardObjective(CaptionObjective):
    """The objective of a caption run with a reward; see the module."""

    _scorer: CiderD

    def refer_to(self, data: CaptionedImages) -> None:
        """Score against the captions of these images, which `prepare` will take groups of."""
        told = (
            [[*ptb_tokens(text), _END] for text in data.captions_of(i)] for i in range(len(data))
        )
        self._scorer = CiderD(list(told))

    def prepare(self, data: CaptionedImages, group: Group, loaded: NDArray[Any]) -> RewardBatch:
        """See `TaskObjective.prepare`."""
        return RewardBatch(loaded=loaded, images=group.images)

    def step(  # type: ignore[override]
        self, batch: RewardBatch, step: int, *, along: float, scale: float
    ) -> dict[str, float]:
        """See `TaskObjective.step`; `reward` is the mean score of what was drawn."""
        learner, n = self._learner, self._config.captions_per_image
        learner.model.eval()
        drawn = self._draw(batch, step)
        total = self._processes.all_reduce(int(drawn.counts.sum()))
        micro = self._config.micro_batch
        most = max(1, micro // n) if micro else len(batch.images)
        for start in range(0, len(batch.images), most):
            piece = slice(start, start + most)
            with self._arithmetic.plain():
                ids = drawn.ids[piece]
                seen = learner.read(self._loader.states(learner, batch.loaded[piece]))
                loss = policy_loss_sum(
                    learner.logits(seen, ids, torch.ones_like(ids)), drawn[piece]
                )
            (loss * (scale / total)).backward()  # type: ignore[no-untyped-call]
        learner.model.train()
        count = self._processes.all_reduce(drawn.scores.numel())
        return {"reward": self._processes.all_reduce(float(drawn.scores.sum())) / count}

    @torch.no_grad()
    def _draw(self, batch: RewardBatch, step: int) -> Drawn:
        learner, n = self._learner, self._config.captions_per_image
        with self._arithmetic(step, self._processes.rank):
            states = self._loader.states(learner, batch.loaded)
            ids, given = written(learner, states, _at_random, count=n)
        ends = ids[..., given:] == learner.end_id
        counts = torch.zeros_like(ids, dtype=torch.bool)
        counts[..., given:] = ends.cumsum(-1) - ends.long() == 0
        images = zip(ids[..., given:].tolist(), batch.images.tolist(), strict=True)
        scores = [
            self._scorer.scores(list(map(self._words, rows)), image) for rows, image in images
        ]
        return Drawn(ids=ids, counts=counts, scores=torch.tensor(scores, device=ids.device))

    def _words(self, ids: list[int]) -> list[str]:
        kept = sentence(self._learner, ids)
        return ptb_tokens(self._learner.decode(kept)) + [_END] * (len(kept) < len(ids))


def policy_loss_sum(logits: Tensor, drawn: Drawn) -> Tensor:
    """Minus the log-likelihood of the tokens that were drawn, each times its caption's gain.

    Args:
        logits: (i, n, l, v), of no temperature yet; position p says how likely the token at p + 1 was.
        drawn: what was drawn.
    """
    surprise = cross_entropy(
        logits[..., :-1, :].flatten(0, -2) / _TEMPERATURE,
        drawn.ids[..., 1:].flatten(),
        reduction="none",
    ).view_as(drawn.ids[..., 1:])
    return (surprise * drawn.counts[..., 1:] * drawn.gains[..., None]).sum()


def _at_random(logits: Tensor) -> Tensor:
    chances = (logits.flatten(0, 1) / _TEMPERATURE).softmax(-1)
    return torch.multinomial(chances, 1).view(logits.shape[:2])
