"""Language-model loss of captions, and what the captions written on the way look like.

The loss is that of BLIP's and LAVIS's authors: tokens after the prompt only, nothing on padding,
smoothed. Validation reports it without smoothing: the mean surprise of a token, in nats.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from retrieval_engine.metrics.bleu import bleu, bleu_statistics
from retrieval_engine.metrics.cider import cider_d
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.models.learner import CaptionLearner
from retrieval_engine.train.finetune.captioned import CaptionedImages, Group, Ints
from retrieval_engine.train.finetune.config import Select
from retrieval_engine.train.finetune.objective import TaskObjective
from retrieval_engine.train.finetune.vision_states import padded

IGNORED = -100

_VAL_IMAGES = 32
_WRITTEN = 64  # images whose captions are written at each validation, for a look
_JUDGED = 256  # and where they decide
_LOGGED = 8
_LONGEST = 20  # tokens of a written caption, after the prompt
_FEWEST = 8  # captions that can be judged
_MOST_ALIKE, _MOST_REPEATED, _FEWEST_PAIRS = 0.5, 0.3, 0.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaptionBatch:
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
        """Number of tokens in the batch that count in the loss."""
        return int((self.labels[..., 1:] != IGNORED).sum())


class CaptionObjective(TaskObjective):
    """The objective of a caption run; it trains nothing beside the model."""

    _learner: CaptionLearner

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        select = self._config.select
        self.higher_is_better = select is not Select.LOSS
        self.metric = select.value if self.higher_is_better else "caption_loss"
        self.samples: dict[str, str] = {}
        self.warning = ""

    def prepare(self, data: CaptionedImages, group: Group, loaded: NDArray[Any]) -> Any:
        """See `TaskObjective.prepare`: tokens and labels."""
        return caption_batch(self._learner, data, group.captions, loaded)

    def step(
        self, batch: CaptionBatch, step: int, *, along: float, scale: float
    ) -> dict[str, float]:
        """See `TaskObjective.step`."""
        total = self._processes.all_reduce(batch.count)
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
        return {"lm": self._processes.all_reduce(found)}

    def _loss(self, batch: CaptionBatch, piece: slice, smoothing: float) -> Tensor:
        """Sum over the learned tokens of some images."""
        device = self._processes.device
        states = self._loader.states(self._learner, batch.loaded[piece])
        ids, mask, labels = (
            rows[piece].to(device) for rows in (batch.ids, batch.mask, batch.labels)
        )
        logits = self._learner.logits(self._learner.read(states), ids, mask)
        return caption_loss_sum(logits, labels, smoothing=smoothing)

    @torch.no_grad()
    def validate(self, data: CaptionedImages) -> dict[str, float]:
        """Loss per token of all captions; figures of captions written for a few images."""
        total, count = 0.0, 0
        most = int(np.diff(data.starts).max())
        for start in range(0, len(data), _VAL_IMAGES):
            images = np.arange(start, min(start + _VAL_IMAGES, len(data)))
            captions = data.starts[images][:, None] + np.arange(most)
            captions[captions >= data.starts[images + 1][:, None]] = -1
            loaded = self._loader.load(data, images, None)
            batch = caption_batch(self._learner, data, captions, loaded)
            with self._arithmetic.plain():
                total += float(self._loss(batch, slice(None), 0.0))
            count += batch.count
        return {"caption_loss": total / count, **self._written(data)}

    def _written(self, data: CaptionedImages) -> dict[str, float]:
        images = np.arange(min(_JUDGED if self.higher_is_better else _WRITTEN, len(data)))
        texts: list[str] = []
        for start in range(0, len(images), _VAL_IMAGES):
            some = images[start : start + _VAL_IMAGES]
            with self._arithmetic.plain():
                states = self._loader.states(self._learner, self._loader.load(data, some, None))
                texts += greedy_captions(self._learner, states)
        shown = images[:_LOGGED].tolist()
        self.samples = {data.ids[i]: texts[i] for i in shown}
        found = variety(texts)
        self.warning = collapse(texts, found)
        references = [[ptb_tokens(text) for text in data.captions_of(i)] for i in images.tolist()]
        words = [ptb_tokens(text) for text in texts]
        counts = [bleu_statistics(*pair) for pair in zip(words, references, strict=True)]
        found["cider"] = float(cider_d(words, references).mean())
        found["bleu4"] = float(bleu(np.sum(counts, axis=0))[-1])
        return found


def caption_batch(
    learner: CaptionLearner, data: CaptionedImages, captions: Ints, loaded: NDArray[Any]
) -> CaptionBatch:
    """Captions as the decoder reads and learns them, with the loaded images they belong to.

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
    return CaptionBatch(
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


@torch.no_grad()
def greedy_captions(learner: CaptionLearner, states: Tensor) -> list[str]:
    """The likeliest word after word for each of (i, t, w) images."""
    ids, given = written(learner, states, lambda logits: logits.argmax(-1))
    return [learner.decode(sentence(learner, row)) for row in ids[:, 0, given:].tolist()]


@torch.no_grad()
def written(
    learner: CaptionLearner, states: Tensor, choose: Callable[[Tensor], Tensor], *, count: int = 1
) -> tuple[Tensor, int]:
    """Captions of images, a word at a time.

    Args:
        learner: with the weights as they are now.
        states: (i, t, w).
        choose: (i, count, v) logits -> (i, count) tokens.
        count: captions of an image.

    Returns:
        (i, count, l) ids, given ones and end included, the end again behind the end; and how many
        are given.
    """
    begun, first, state = learner.begin(states)
    logits = first[:, None].expand(-1, count, -1)
    ids = torch.tensor(begun, device=states.device).expand(len(states), count, -1)
    ended = torch.zeros(ids.shape[:2], dtype=torch.bool, device=states.device)
    for place in range(_LONGEST):
        chosen = choose(logits).masked_fill(ended, learner.end_id)
        ended |= chosen == learner.end_id
        ids = torch.cat((ids, chosen[..., None]), dim=-1)
        if place + 1 == _LONGEST or bool(ended.all()):
            break
        logits = state.step(chosen, None)
    return ids, len(begun)


def sentence(learner: CaptionLearner, ids: list[int]) -> list[int]:
    """What comes before the end."""
    return ids[: ids.index(learner.end_id)] if learner.end_id in ids else ids


def variety(texts: Sequence[str]) -> dict[str, float]:
    """How varied captions are: `distinct_2`, `repetition_rate`, `commonest_share`, in [0, 1]."""
    pairs = [list(pairwise(words)) for words in map(str.split, texts)]
    count = max(1, sum(map(len, pairs)))
    return {
        "distinct_2": len({pair for own in pairs for pair in own}) / count,
        "repetition_rate": sum(len(own) - len(set(own)) for own in pairs) / count,
        "commonest_share": max(Counter(texts).values()) / len(texts),
    }


def collapse(texts: Sequence[str], figures: Mapping[str, float]) -> str:
    """A warning where captions say one thing over and over; empty where they do not."""
    if len(texts) < _FEWEST:
        return ""
    commonest, _ = Counter(texts).most_common(1)[0]
    if figures["commonest_share"] > _MOST_ALIKE:
        return f"mode collapse: {figures['commonest_share']:.0%} of captions are {commonest!r}"
    if figures["repetition_rate"] > _MOST_REPEATED:
        return f"repetition: {figures['repetition_rate']:.0%} of word pairs repeat in their caption"
    if figures["distinct_2"] < _FEWEST_PAIRS:
        return f"little variety: only {figures['distinct_2']:.1%} of word pairs are distinct"
    return ""
