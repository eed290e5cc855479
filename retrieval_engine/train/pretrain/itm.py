"""Pairs for the matching loss: true ones, and false ones from easy to hard."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrieval_engine.train.negatives import draw_negatives
from retrieval_engine.train.pretrain.batches import Batch
from retrieval_engine.train.pretrain.texts import Texts, Tokens
from retrieval_engine.train.pretrain.training_set import TrainingSet
from retrieval_engine.train.pretrain.words import mirrored, nonsense

_TRIES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """n (picture, text) pairs.

    Attributes:
        tokens: of the texts; most begin with [ENC], the rest with [CLS].
        image: (n,) picture in the batch.
        label: (n,) 1 where the text is true of the picture.
    """

    tokens: Tokens
    image: Tensor
    label: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchingPlan:
    """Shares of the kinds of text negatives; the rest are captions of other pictures.

    Attributes:
        batch_share: part of the batch that gets pairs.
        swapped: a caption of the picture with a word or two changed so that it is false.
        nonsense: a text true of no picture.
        encode_first: texts that begin with [ENC], as BLIP's authors do; the rest begin with
            [CLS], as transformers does.
    """

    batch_share: float = 0.5
    swapped: float = 0.5
    nonsense: float = 0.12
    encode_first: float = 0.75


class MatchingPairsDraw:
    """Draws the pairs of a step.

    Args:
        data: the training set.
        texts: its captions as tokens.
        plan: shares.
        seed: decides the draws together with the step.
    """

    def __init__(self, data: TrainingSet, texts: Texts, plan: MatchingPlan, seed: int) -> None:
        self._data = data
        self._texts = texts
        self._plan = plan
        self._seed = seed
        self._words = frozenset(w for text in data.captions for w in text.split())

    def pairs(self, batch: Batch, scores: Tensor, step: int, hardness: float) -> Pairs:
        """A true pair, a false text and a false picture for each of a part of the pictures.

        Args:
            batch: of the joint stage.
            scores: (t, b) similarities of the batch over temperature, without gradient.
            step: number of the step.
            hardness: 0 draws false captions and pictures evenly, 1 as the scores say.
        """
        assert batch.true is not None
        assert batch.tokens is not None
        rng = np.random.default_rng((self._seed, 2, step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        b, device = len(batch.items), scores.device
        chosen = rng.permutation(b)[: max(2, round(b * self._plan.batch_share))]
        rounds = rng.integers(len(batch.captions) // b, size=len(chosen))
        text = torch.from_numpy(rounds * b + chosen).to(device)
        image = torch.from_numpy(chosen).to(device)

        other_text, has_text = draw_negatives(
            scores.T[image], ~batch.true.T[image], hardness, generator
        )
        other_image, has_image = draw_negatives(
            scores[text], ~batch.true[text], hardness, generator
        )
        rows, made = self._made(batch, chosen, text, rng)
        taken = torch.zeros(len(chosen), dtype=torch.bool)
        taken[rows] = True
        keep = has_text & ~taken.to(device)
        tokens = _stacked(
            batch.tokens[torch.cat([text, text[has_image], other_text[keep]])],
            self._texts.encode(made).to(device) if made else None,
        )
        self._begin(tokens, rng)
        return Pairs(
            tokens=tokens,
            image=torch.cat([image, other_image[has_image], image[keep], image[rows]]),
            label=(torch.arange(len(tokens.ids), device=device) < len(text)).long(),
        )

    def _made(
        self,
        batch: Batch,
        chosen: "np.ndarray[tuple[int], np.dtype[np.int64]]",
        text: Tensor,
        rng: np.random.Generator,
    ) -> tuple[list[int], list[str]]:
        """Rows of `chosen` that get a text made for them, and the texts."""
        rows, made = [], []
        fate = rng.random(len(chosen))
        for row, (at, caption) in enumerate(zip(chosen, text.tolist(), strict=True)):
            words = None
            if fate[row] < self._plan.nonsense:
                words = nonsense(rng, self._words)
            elif fate[row] < self._plan.nonsense + self._plan.swapped:
                words = self._swapped(int(batch.captions[caption]), int(batch.items[at]), rng)
            if words:
                rows.append(row)
                made.append(mirrored(words) if batch.is_mirrored else words)
        return rows, made

    def _swapped(self, caption: int, item: int, rng: np.random.Generator) -> str | None:
        for _ in range(_TRIES):
            made = self._data.slots.changed(self._data.captions[caption], rng)
            if made and self._data.is_false(*made, item):
                return made[0]
        return None

    def _begin(self, tokens: Tokens, rng: np.random.Generator) -> None:
        first = rng.random(len(tokens.ids)) < self._plan.encode_first
        tokens.ids[torch.from_numpy(first).to(tokens.ids.device), 0] = self._texts.encode_id


def _stacked(first: Tokens, second: Tokens | None) -> Tokens:
    if second is None:
        return Tokens(ids=first.ids.clone(), mask=first.mask)
    length = max(first.ids.shape[1], second.ids.shape[1])

    def padded(table: Tensor) -> Tensor:
        return torch.nn.functional.pad(table, (0, length - table.shape[1]))

    return Tokens(
        ids=torch.cat([padded(first.ids), padded(second.ids)]),
        mask=torch.cat([padded(first.mask), padded(second.mask)]),
    )
