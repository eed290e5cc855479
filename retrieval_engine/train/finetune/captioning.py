"""Language-model loss of captions, and what the captions written on the way look like.

The loss is that of BLIP's and LAVIS's authors: tokens after the prompt only, nothing on padding,
smoothed. Validation reports it without smoothing: the mean surprise of a token, in nats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from retrieval_engine.models.learner import CaptionLearner
from retrieval_engine.train.finetune.arithmetic import Arithmetic
from retrieval_engine.train.finetune.captioned import Captioned, Group, Ints
from retrieval_engine.train.finetune.config import FinetuneConfig, Select
from retrieval_engine.train.finetune.distributed import Processes
from retrieval_engine.train.finetune.states import Loader, padded
from retrieval_engine.train.finetune.written import collapse, variety, write

IGNORED = -100
Judge = Callable[[Sequence[str], Sequence[Sequence[str]]], float]

_VAL_IMAGES = 32
_WRITTEN = 64  # images whose captions are written at each validation
_LOGGED = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sentences:
    """One process's part of a batch: n captions for each of i images.

    Attributes:
        loaded: what the loader gave.
        ids: (i, n, l) token ids.
        mask: (i, n, l).
        labels: (i, n, l) ids that are learned, -100 elsewhere.
    """

    loaded: NDArray[Any]
    ids: Tensor
    mask: Tensor
    labels: Tensor

    @property
    def count(self) -> int:
        """Number of learned tokens."""
        return int((self.labels[..., 1:] != IGNORED).sum())


class Captions:
    """The objective of a caption run; see `objective.Objective`.

    Args:
        learner: what is trained, adapters included.
        loader: gives states.
        config: the recipe.
        processes: who shares a batch.
        arithmetic: context of every forward pass.
        judge: gives a set of captions a score against references; needed to select by CIDEr.
    """

    def __init__(
        self,
        learner: CaptionLearner,
        loader: Loader,
        config: FinetuneConfig,
        processes: Processes,
        arithmetic: Arithmetic,
        judge: Judge | None,
    ) -> None:
        self._learner, self._loader, self._config = learner, loader, config
        self._processes, self._arithmetic, self._judge = processes, arithmetic, judge
        self.higher_is_better = config.select is Select.CIDER
        self.metric = "cider" if self.higher_is_better else "caption_loss"
        self.samples: dict[str, str] = {}
        self.warning = ""

    def parameters(self) -> list[nn.Parameter]:
        """Nothing beside the model."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""

    def prepare(self, data: Captioned, group: Group, loaded: NDArray[Any]) -> Sentences:
        """A batch of this process, tokens and labels included."""
        return sentences(self._learner, data, group.captions, loaded)

    def step(self, batch: Sentences, step: int, *, along: float, scale: float) -> dict[str, float]:
        """Add the gradients of a batch; see `objective.Objective`."""
        total = self._processes.total(batch.count)
        n = batch.ids.shape[1]
        micro = self._config.micro_batch
        most = max(1, micro // n) if micro else len(batch.ids)
        found = 0.0
        for start in range(0, len(batch.ids), most):
            piece = slice(start, start + most)
            place = self._processes.rank * 1_000_003 + start
            with self._arithmetic(step, place):
                loss = self._loss(batch, piece, self._config.label_smoothing) / total
            (loss * scale).backward()  # type: ignore[no-untyped-call]
            found += float(loss.detach())
        return {"lm": self._processes.total(found)}

    def _loss(self, batch: Sentences, piece: slice, smoothing: float) -> Tensor:
        """Sum over the learned tokens of some images."""
        device = self._processes.device
        states = self._loader.states(self._learner, batch.loaded[piece])
        ids, mask, labels = (
            rows[piece].to(device) for rows in (batch.ids, batch.mask, batch.labels)
        )
        logits = self._learner.logits(self._learner.read(states), ids, mask)
        return caption_loss_sum(logits, labels, smoothing=smoothing)

    @torch.no_grad()
    def validate(self, data: Captioned) -> dict[str, float]:
        """Loss per token of all captions; figures of captions written for a few images."""
        total, count = 0.0, 0
        most = int(np.diff(data.starts).max())
        for start in range(0, len(data), _VAL_IMAGES):
            images = np.arange(start, min(start + _VAL_IMAGES, len(data)))
            captions = data.starts[images][:, None] + np.arange(most)
            captions[captions >= data.starts[images + 1][:, None]] = -1
            loaded = self._loader.load(data, images, None)
            batch = sentences(self._learner, data, captions, loaded)
            with self._arithmetic.plain():
                total += float(self._loss(batch, slice(None), 0.0))
            count += batch.count
        return {"caption_loss": total / count, **self._written(data)}

    def _written(self, data: Captioned) -> dict[str, float]:
        images = np.arange(min(_WRITTEN, len(data)))
        texts: list[str] = []
        for start in range(0, len(images), _VAL_IMAGES):
            some = images[start : start + _VAL_IMAGES]
            with self._arithmetic.plain():
                states = self._loader.states(self._learner, self._loader.load(data, some, None))
                texts += write(self._learner, states)
        shown = images[:_LOGGED].tolist()
        self.samples = {data.ids[i]: texts[i] for i in shown}
        found = variety(texts)
        self.warning = collapse(texts, found)
        if self._judge is not None:
            found["cider"] = self._judge(texts, [data.captions_of(i) for i in images.tolist()])
        return found


def sentences(
    learner: CaptionLearner, data: Captioned, captions: Ints, loaded: NDArray[Any]
) -> Sentences:
    """Captions as the decoder reads and learns them.

    Args:
        learner: knows its prompt and its end.
        data: has the texts.
        captions: (i, n) numbers of texts, -1 for none.
        loaded: of the i images.
    """
    numbers = captions.ravel().tolist()
    rows, given = learner.encode([data.texts[j] if j >= 0 else "" for j in numbers])
    ids, mask = padded(rows, learner.pad_id)
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :given] = IGNORED
    labels[captions.ravel() < 0] = IGNORED
    shape = (*captions.shape, ids.shape[1])
    return Sentences(
        loaded=loaded, ids=ids.view(shape), mask=mask.view(shape), labels=labels.view(shape)
    )


def caption_loss_sum(logits: Tensor, labels: Tensor, *, smoothing: float) -> Tensor:
    """Sum over tokens of the smoothed cross entropy.

    Args:
        logits: (…, l, v).
        labels: (…, l); position p holds the id that `logits[…, p - 1, :]` should give.
        smoothing: label smoothing.
    """
    return cross_entropy(
        logits[..., :-1, :].flatten(0, -2),
        labels[..., 1:].flatten(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
        reduction="sum",
    )
