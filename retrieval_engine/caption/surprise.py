"""How surprised a captioner is at true captions: token by token, by their own picture or another.

Of each token there is its surprise in nats, given the words before it and the picture, and the same
with another picture's states in place of its own. A decoder that does not look has both alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval_engine.models.batching import pad_tokens
from retrieval_engine.models.learner import CaptionLearner

_AT_ONCE = 32  # captions whose logits are held
_BANDS = ((10, "the 10 commonest"), (100, "the next 90"), (10**9, "all rarer"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Tokens of the true captions that are about equally common.

    Attributes:
        name: which.
        share: of all tokens, 0-1.
        loss: mean surprise in nats, given the picture and the words before.
        gain: by how much another picture in its place makes it larger.
    """

    name: str
    share: float
    loss: float
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surprise:
    """What a captioner makes of m tokens of true captions.

    Attributes:
        ids: (m,) int64 of the tokens.
        places: (m,) int64 in their captions, from 0.
        own: (m,) float64 surprise in nats, given the caption's own picture.
        other: (m,) the same, given another picture.
        entropy: (m,) in nats, of the next token that it expected in their place.
    """

    ids: NDArray[np.int64]
    places: NDArray[np.int64]
    own: NDArray[np.float64]
    other: NDArray[np.float64]
    entropy: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: "Sequence[Surprise]") -> "Surprise":
        """Those of several batches as one."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})

    @property
    def gain(self) -> float:
        """Mean nats that another picture in place of its own costs a token."""
        return float((self.other - self.own).mean())

    @property
    def entropy_by_place(self) -> list[float]:
        """Mean entropy at the first, second, … token, as far as a tenth of the captions reach."""
        counts = np.bincount(self.places)
        reached = np.flatnonzero(counts >= counts.max() / 10).tolist()
        return [float(self.entropy[self.places == place].mean()) for place in reached]

    def bands(self, end_id: int) -> list[Band]:
        """By how common a token is; `end_id`, the end of every caption, is none of them."""
        words = self.ids != end_id
        ids, own, other = self.ids[words], self.own[words], self.other[words]
        _, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
        ranks = np.argsort(np.argsort(-counts, kind="stable"))[inverse]
        first, bands = 0, []
        for last, name in _BANDS:
            these = (ranks >= first) & (ranks < last)
            first = last
            if these.any():
                loss, gain = float(own[these].mean()), float((other - own)[these].mean())
                bands.append(Band(name=name, share=float(these.mean()), loss=loss, gain=gain))
        return bands


@torch.no_grad()
def surprises(
    learner: CaptionLearner, states: Tensor, texts: Sequence[Sequence[str]]
) -> Iterator[Surprise]:
    """A captioner's surprise at the captions of some pictures, a batch of captions at a time.

    Args:
        learner: the captioner.
        states: (n, t, w) of the pictures.
        texts: of each its captions; the other picture is the one before.
    """
    rows = [(i, text) for i, own in enumerate(texts) for text in own]
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        ids, given = learner.encode([text for _, text in some])
        padded, mask = (torch.from_numpy(a) for a in pad_tokens(ids, max(map(len, ids)), pad=0))
        own = torch.tensor([i for i, _ in some])
        right, wrong = (
            _log_probabilities(learner, states[chosen.to(states.device)], padded, mask)
            for chosen in (own, (own - 1) % len(texts))
        )
        targets, places = padded[:, 1:], torch.arange(1, padded.shape[1]) - given
        learned = mask[:, 1:].bool() & (places >= 0)
        yield Surprise(
            ids=targets[learned].numpy(),
            places=places.expand(len(some), -1)[learned].numpy(),
            own=-_at(right, targets)[learned].double().numpy(),
            other=-_at(wrong, targets)[learned].double().numpy(),
            entropy=-(right.exp() * right).sum(-1)[learned].double().numpy(),
        )


def _log_probabilities(
    learner: CaptionLearner, states: Tensor, padded: Tensor, mask: Tensor
) -> Tensor:
    """(b, l - 1, v) of every token after the first, on the CPU; the batch is (b, l)."""
    ids, seen = padded[:, None].to(states.device), mask[:, None].to(states.device)
    logits = learner.logits(learner.read(states.float()), ids, seen)
    return logits[:, 0, :-1].float().log_softmax(-1).cpu()


def _at(values: Tensor, ids: Tensor) -> Tensor:
    """(b, l, v) values at (b, l) ids."""
    return values.gather(-1, ids[..., None])[..., 0]
