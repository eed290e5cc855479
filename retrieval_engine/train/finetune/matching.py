"""The matching loss: which pairs there are, and what they cost."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from retrieval_engine.models.matcher import CrossEncoder
from retrieval_engine.train.negatives import draw_negatives


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
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
    def pairs(self) -> int:
        """Number of pairs, true ones included."""
        return len(self.ids) + int(self.has_text.sum()) + int(self.has_image.sum())


def draw_world(scores: Tensor, same: Tensor, ids: Tensor, mask: Tensor, *, seed: int) -> World:
    """Draw a false text for each image and a false image for each text, by similarity.

    Args:
        scores: (b, b) of images and texts over the temperature, without gradient.
        same: (b,) number of each pair's picture; nothing of the same picture is false.
        ids: (b, l).
        mask: (b, l).
        seed: decides the draw, which is the same in every process.
    """
    generator = torch.Generator().manual_seed(seed)
    false = same[:, None] != same[None]
    text_of, has_text = draw_negatives(scores, false, 1.0, generator)
    image_of, has_image = draw_negatives(scores.T, false.T, 1.0, generator)
    return World(
        ids=ids,
        mask=mask,
        text_of=text_of,
        has_text=has_text,
        image_of=image_of,
        has_image=has_image,
    )


def matching_loss(cross: CrossEncoder, states: Tensor, own: slice, world: World) -> Tensor:
    """Cross entropy of the pairs whose images are these, as their share of the whole batch's mean.

    Args:
        cross: the family's cross-encoder.
        states: (i, t, w) of the images.
        own: their rows in the world.
        world: all pairs.
    """
    rows = torch.arange(own.start, own.stop, device=states.device)
    texts = torch.stack((rows, world.text_of[own]), dim=1)  # (i, 2): true, false
    seen = cross.keys_values(states)
    first = cross.logits(seen, *_cut(world.ids[texts], world.mask[texts]))
    loss = cross_entropy(first[:, 0], torch.ones_like(rows), reduction="sum")
    loss = loss + _false_loss(first[:, 1][world.has_text[own]])
    inside = (world.image_of >= own.start) & (world.image_of < own.stop)
    strays = torch.nonzero(inside & world.has_image)[:, 0]
    if len(strays):
        at = world.image_of[strays] - own.start
        theirs = [(keys[at], values[at]) for keys, values in seen]
        ids, mask = _cut(world.ids[strays, None], world.mask[strays, None])
        loss = loss + _false_loss(cross.logits(theirs, ids, mask)[:, 0])
    return loss / world.pairs


def _false_loss(logits: Tensor) -> Tensor:
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return cross_entropy(logits, labels, reduction="sum")


def _cut(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Without the padding that all rows share."""
    longest = int(mask.sum(-1).max())
    return ids[..., :longest], mask[..., :longest]
