"""Slow copies of a learner and the queue of what they made (MoCo, He et al. 2020; ALBEF; BLIP)."""

from typing import Any

import torch
from torch import Tensor

from retrieval_engine.models.learner import RetrievalLearner
from retrieval_engine.train.finetune.config import FinetuneConfig


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
        """Go on from `state_dict`."""
        slow = dict(self.learner.model.named_parameters())
        for name, value in state["slow"].items():
            slow[name].copy_(value)
        device = next(iter(slow.values())).device
        self._images, self._texts, self._same = (
            None if rows is None else rows.to(device) for rows in state["queue"]
        )
