"""Contrastive and matching loss, as BLIP's and BLIP-2's authors train retrieval.

BLIP: momentum copies, a queue of their features, soft targets (ALBEF, Li et al. 2021). BLIP-2: the
other pairs of the batch, smoothed targets, the maximum over the queries. Both: all captions of an
image are its positives, ITM with negatives drawn by similarity, never of the same image.

A batch may be larger than what fits at once: vectors are made first, the contrastive loss gives the
gradient of each, and then one piece after the other goes through the model again with its share of
that gradient (gradient caching, Gao et al. 2021). The keys and values of an image are computed once
for all pairs it is in, and an image's states never leave the process that has them: a text goes to
the image that it is a negative of.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from retrieval_engine.metrics.recall import RecallReport, recall
from retrieval_engine.models.learner import RetrievalLearner
from retrieval_engine.train.finetune.captioned import CaptionedImages, Group
from retrieval_engine.train.finetune.objective import TaskObjective
from retrieval_engine.train.finetune.retrieval_losses import (
    MomentumCopy,
    draw_matching_pairs,
    itc_in_batch,
    itc_momentum,
    matching_loss,
)
from retrieval_engine.train.finetune.vision_states import padded

_TEMPERATURE, _COLDEST, _WARMEST = 0.07, 0.001, 0.5
_VAL_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RetrievalBatch:
    """One process's part of a batch: b images with a caption each.

    Attributes:
        loaded: what the loader gave.
        same: (b,) number that equal images share.
        ids: (b, l) token ids.
        mask: (b, l).
    """

    loaded: NDArray[Any]
    same: Tensor
    ids: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """Some rows as the model sees them: states (c, t, w), images (c, q, d), texts (c, d)."""

    states: Tensor
    images: Tensor
    texts: Tensor


class RetrievalObjective(TaskObjective):
    """The objective of a retrieval run; the temperature is trained beside the model."""

    higher_is_better = True
    metric = "mean_recall"
    _learner: RetrievalLearner

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.temperature = nn.Parameter(torch.tensor(_TEMPERATURE, device=self._processes.device))
        self._slow = MomentumCopy(self._learner, self._config) if self._learner.momentum else None

    def parameters(self) -> list[nn.Parameter]:
        """The temperature."""
        return [self.temperature]

    def state_dict(self) -> dict[str, Any]:
        """See `TaskObjective.state_dict`."""
        return {} if self._slow is None else self._slow.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `TaskObjective.load_state_dict`."""
        if self._slow is not None:
            self._slow.load_state_dict(state)

    def prepare(self, data: CaptionedImages, group: Group, loaded: NDArray[Any]) -> RetrievalBatch:
        """See `TaskObjective.prepare`."""
        texts = [data.texts[j] for j in group.captions[:, 0].tolist()]
        ids, mask = padded(self._learner.tokenize(texts), self._learner.pad_id)
        same = torch.from_numpy(data.same[group.images])
        return RetrievalBatch(loaded=loaded, same=same, ids=ids, mask=mask)

    def step(
        self, batch: RetrievalBatch, step: int, *, along: float, scale: float
    ) -> dict[str, float]:
        """See `TaskObjective.step`; the step decides the negatives."""
        device, size = self._processes.device, len(batch.same)
        same = self._processes.gather(batch.same.to(device))
        ids, mask = self._gather_texts(batch.ids.to(device), batch.mask.to(device))
        mine = self._processes.share(len(same))
        if self._slow is not None:
            self._slow.follow(self._learner)
        pieces = list(_pieces(size, self._config.micro_batch))
        live = len(pieces) == 1
        seen = [self._see(batch, piece, step, grad=live) for piece in pieces]
        images, texts = (
            self._processes.gather(torch.cat(part)).requires_grad_()
            for part in ([s.images for s in seen], [s.texts for s in seen])
        )
        slow = self._slow_features(batch, seen, pieces) if self._slow is not None else None
        loss, scores = self._contrast(images, texts, same, slow, along)
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        assert images.grad is not None
        assert texts.grad is not None
        losses = {"itc": float(loss.detach())}
        if not math.isfinite(losses["itc"]):
            return losses  # no negatives can be drawn; the loop stops here
        pairs = None
        if self._config.itm:
            seed = self._config.seed * 1_000_003 + step
            pairs = draw_matching_pairs(scores, same, self._learner.match_ids(ids), mask, seed=seed)
        matched = 0.0
        for number, piece in enumerate(pieces):
            now = seen[number] if live else self._see(batch, piece, step, grad=True)
            own = slice(mine.start + piece.start, mine.start + piece.stop)
            total = (now.images * images.grad[own]).sum() + (now.texts * texts.grad[own]).sum()
            if pairs is not None:
                with self._arithmetic.plain():
                    itm = matching_loss(self._learner.cross, now.states, own, pairs)
                matched += float(itm.detach())
                total = total + itm * scale
            total.backward()  # type: ignore[no-untyped-call]
        if pairs is not None:
            losses["itm"] = self._processes.all_reduce(matched)
        losses["temperature"] = float(self.temperature.detach())
        return losses

    # The vectors

    def _see(self, batch: RetrievalBatch, piece: slice, step: int, *, grad: bool) -> _Seen:
        device = self._processes.device
        number = self._processes.rank * 1_000_003 + piece.start
        with torch.set_grad_enabled(grad), self._arithmetic(step, number):
            states = self._loader.states(self._learner, batch.loaded[piece])
            images = self._learner.embed_images(states)
            texts = self._learner.embed_texts(
                batch.ids[piece].to(device), batch.mask[piece].to(device)
            )
        return _Seen(states=states, images=images, texts=texts)

    def _gather_texts(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self._processes.size > 1:
            longest = self._processes.gather(torch.tensor([ids.shape[1]], device=ids.device))
            more = int(longest.max()) - ids.shape[1]
            ids = pad(ids, (0, more), value=self._learner.pad_id)
            mask = pad(mask, (0, more))
        return self._processes.gather(ids), self._processes.gather(mask)

    def _slow_features(
        self, batch: RetrievalBatch, seen: Sequence[_Seen], pieces: Sequence[slice]
    ) -> tuple[Tensor, Tensor]:
        assert self._slow is not None
        device = self._processes.device
        images, texts = [], []
        for piece, now in zip(pieces, seen, strict=True):
            with torch.no_grad(), self._arithmetic.plain():
                states = now.states.detach()
                if self._slow.sees:
                    states = self._loader.states(self._slow.learner, batch.loaded[piece])
                images.append(self._slow.learner.embed_images(states)[:, 0])
                texts.append(
                    self._slow.learner.embed_texts(
                        batch.ids[piece].to(device), batch.mask[piece].to(device)
                    )
                )
        return (
            self._processes.gather(torch.cat(images)),
            self._processes.gather(torch.cat(texts)),
        )

    def _contrast(
        self,
        images: Tensor,
        texts: Tensor,
        same: Tensor,
        slow: tuple[Tensor, Tensor] | None,
        along: float,
    ) -> tuple[Tensor, Tensor]:
        """The contrastive loss of the whole batch, and (B, B) scores of images and texts."""
        # Each process computes all of it; the temperature's gradient must count once.
        held = self.temperature if self._processes.is_first else self.temperature.detach()
        temperature = held.clamp(_COLDEST, _WARMEST)
        if slow is None:
            scores = torch.einsum("iqd,td->itq", images, texts).amax(-1) / temperature
            return itc_in_batch(scores, same, self._config.label_smoothing), scores.detach()
        assert self._slow is not None
        alpha = self._config.alpha * min(1.0, along)
        known_images, known_texts, known = self._slow.with_queue(*slow, same)
        loss = itc_momentum(
            (images[:, 0], texts),
            (known_images, known_texts),
            same[:, None] == known[None],
            temperature=temperature,
            alpha=alpha,
        )
        self._slow.enqueue(*slow, same)
        scores = images[:, 0].detach() @ texts.detach().T / temperature.detach()
        return loss, scores

    # What it is worth

    @torch.no_grad()
    def validate(self, data: CaptionedImages) -> dict[str, float]:
        """Exact recall on held-out images by ITC, in per cent."""
        images, texts = [], []
        for start in range(0, len(data), _VAL_ROWS):
            numbers = np.arange(start, min(start + _VAL_ROWS, len(data)))
            with self._arithmetic.plain():
                states = self._loader.states(self._learner, self._loader.load(data, numbers, None))
                images.append(self._learner.embed_images(states).cpu())
        for start in range(0, len(data.texts), 4 * _VAL_ROWS):
            rows = self._learner.tokenize(data.texts[start : start + 4 * _VAL_ROWS])
            ids, mask = padded(rows, self._learner.pad_id)
            device = self._processes.device
            with self._arithmetic.plain():
                texts.append(self._learner.embed_texts(ids.to(device), mask.to(device)).cpu())
        report = recall(torch.cat(images).numpy(), torch.cat(texts).numpy(), data.owner)
        return recall_figures(report)


def recall_figures(report: RecallReport) -> dict[str, float]:
    """`mean_recall` and the recall of each direction as `text_to_image@1`, …, in per cent."""
    figures = {"mean_recall": report.mean_recall}
    for name in ("text_to_image", "image_to_text"):
        for k, value in getattr(report, name).recall.items():
            figures[f"{name}@{k}"] = value
    return figures


def _pieces(size: int, most: int) -> Iterator[slice]:
    step = most or size
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))
