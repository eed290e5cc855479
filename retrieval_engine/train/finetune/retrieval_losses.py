"""Losses of retrieval as plain functions of tensors, and the momentum copy that BLIP's needs.

The contrastive losses of BLIP's and BLIP-2's authors; which pairs the matching loss has and what
they cost; slow copies of a learner and the queue of what they made (MoCo, He et al. 2020; ALBEF).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from retrieval_engine.models.learner import RetrievalLearner
from retrieval_engine.models.matcher import CrossEncoder
from retrieval_engine.train.finetune.config import FinetuneConfig
from retrieval_engine.train.negatives import draw_negatives


def itc_momentum(
    fast: tuple[Tensor, Tensor],
    slow: tuple[Tensor, Tensor],
    positive: Tensor,
    *,
    temperature: Tensor,
    alpha: float,
) -> Tensor:
    """BLIP's contrastive loss; `BLIP_Retrieval.forward` of the authors.

    Args:
        fast: (b, d) images and texts of the model.
        slow: (c, d) images and texts of the momentum copy, the batch's own first.
        positive: (b, c) bool: the same image.
        temperature: scalar.
        alpha: weight of the copy's opinion in the targets.
    """
    b = len(positive)
    given = positive.float() / positive.sum(1, keepdim=True)
    losses = []
    for own, others in ((0, slow[1]), (1, slow[0])):
        with torch.no_grad():
            opinion = (slow[own][:b] @ others.T / temperature).softmax(1)
            target = alpha * opinion + (1 - alpha) * given
        scores = fast[own] @ others.T / temperature
        losses.append(-(target * scores.log_softmax(1)).sum(1).mean())
    return (losses[0] + losses[1]) / 2


def itc_in_batch(scores: Tensor, same: Tensor, smoothing: float) -> Tensor:
    """BLIP-2's contrastive loss with image ids; `Blip2Qformer.forward` of LAVIS.

    Args:
        scores: (b, b) of images and texts, over the temperature.
        same: (b,) number of each pair's image.
        smoothing: of the targets.
    """
    positive = (same[:, None] == same[None]).float()
    target = positive / positive.sum(1, keepdim=True)
    target = (1 - smoothing) * target + smoothing / len(scores)
    to_text = -(target * scores.log_softmax(1)).sum(1).mean()
    to_image = -(target * scores.T.log_softmax(1)).sum(1).mean()
    return (to_text + to_image) / 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatchingPairs:
    """The b pairs of all processes and the negatives that were drawn for them.

    Attributes:
        ids: (b, l) token ids as the matching head reads them.
        mask: (b, l).
        text_of: (b,) false text of each image.
        has_text: (b,) whether it has one at all.
        image_of: (b,) false image of each text.
        has_image: (b,) whether it has one at all.
    """

    ids: Tensor
    mask: Tensor
    text_of: Tensor
    has_text: Tensor
    image_of: Tensor
    has_image: Tensor

    @property
    def count(self) -> int:
        """Number of pairs, true ones included."""
        return len(self.ids) + int(self.has_text.sum()) + int(self.has_image.sum())


def draw_matching_pairs(
    scores: Tensor, same: Tensor, ids: Tensor, mask: Tensor, *, seed: int
) -> MatchingPairs:
    """Draw a false text for each image and a false image for each text, by similarity.

    Args:
        scores: (b, b) of images and texts over the temperature, without gradient.
        same: (b,) number of each pair's image; nothing of the same image is false.
        ids: (b, l).
        mask: (b, l).
        seed: decides the draw, which is the same in every process.
    """
    generator = torch.Generator().manual_seed(seed)
    false = same[:, None] != same[None]
    text_of, has_text = draw_negatives(scores, false, 1.0, generator)
    image_of, has_image = draw_negatives(scores.T, false.T, 1.0, generator)
    return MatchingPairs(
        ids=ids,
        mask=mask,
        text_of=text_of,
        has_text=has_text,
        image_of=image_of,
        has_image=has_image,
    )


def matching_loss(cross: CrossEncoder, states: Tensor, own: slice, pairs: MatchingPairs) -> Tensor:
    """Cross entropy of the pairs whose images are these, as their share of the whole batch's mean.

    Args:
        cross: the family's cross-encoder.
        states: (i, t, w) of the images.
        own: the rows of `pairs` that are these images.
        pairs: of the whole batch.
    """
    rows = torch.arange(own.start, own.stop, device=states.device)
    texts = torch.stack((rows, pairs.text_of[own]), dim=1)  # (i, 2): true, false
    seen = cross.keys_values(states)
    first = cross.logits(seen, *_cut(pairs.ids[texts], pairs.mask[texts]))
    loss = cross_entropy(first[:, 0], torch.ones_like(rows), reduction="sum")
    loss = loss + _false_loss(first[:, 1][pairs.has_text[own]])
    inside = (pairs.image_of >= own.start) & (pairs.image_of < own.stop)
    strays = torch.nonzero(inside & pairs.has_image)[:, 0]
    if len(strays):
        at = pairs.image_of[strays] - own.start
        theirs = [(keys[at], values[at]) for keys, values in seen]
        ids, mask = _cut(pairs.ids[strays, None], pairs.mask[strays, None])
        loss = loss + _false_loss(cross.logits(theirs, ids, mask)[:, 0])
    return loss / pairs.count


def _false_loss(logits: Tensor) -> Tensor:
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return cross_entropy(logits, labels, reduction="sum")


def _cut(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Without the padding that all rows share."""
    longest = int(mask.sum(-1).max())
    return ids[..., :longest], mask[..., :longest]


class MomentumCopy:
    """The momentum copy of a learner and the queue of its features.

    The queue grows from empty: BLIP's own starts as noise, which are easy negatives for a while.
    It never holds more than a pass over the data: later entries would be copies of the same texts.
    """

    def __init__(self, learner: RetrievalLearner, config: FinetuneConfig) -> None:
        self.learner = learner.copy()
        self.learner.model.requires_grad_(False).eval()
        trained = [name for name, p in learner.model.named_parameters() if p.requires_grad]
        self.sees = any("vision_model." in name for name in trained)
        self._names = trained
        self._momentum = config.momentum
        self.limit = config.queue
        self._images: Tensor | None = None
        self._texts: Tensor | None = None
        self._same: Tensor | None = None

    @torch.no_grad()
    def follow(self, learner: RetrievalLearner) -> None:
        """Move the copy towards the learner."""
        fast = dict(learner.model.named_parameters())
        slow = dict(self.learner.model.named_parameters())
        torch._foreach_lerp_(
            [slow[name] for name in self._names],
            [fast[name] for name in self._names],
            1 - self._momentum,
        )

    def with_queue(
        self, images: Tensor, texts: Tensor, same: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """This batch's rows with the queue's behind them."""
        if self._images is None or self._texts is None or self._same is None:
            return images, texts, same
        return (
            torch.cat((images, self._images)),
            torch.cat((texts, self._texts)),
            torch.cat((same, self._same)),
        )

    def enqueue(self, images: Tensor, texts: Tensor, same: Tensor) -> None:
        """Put this batch's rows in front, and drop the oldest."""
        kept = self.with_queue(images, texts, same)
        self._images, self._texts, self._same = (rows[: self.limit].clone() for rows in kept)

    def state_dict(self) -> dict[str, Any]:
        """The copy's trained parameters and the queue."""
        slow = dict(self.learner.model.named_parameters())
        return {
            "slow": {name: slow[name].detach() for name in self._names},
            "queue": [self._images, self._texts, self._same],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        slow = dict(self.learner.model.named_parameters())
        for name, value in state["slow"].items():
            slow[name].copy_(value)
        device = next(iter(slow.values())).device
        self._images, self._texts, self._same = (
            None if rows is None else rows.to(device) for rows in state["queue"]
        )
