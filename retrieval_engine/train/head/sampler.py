"""Which images and captions meet in a step; all of it index arithmetic on the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval_engine.heads import Head
from retrieval_engine.metrics.pair_scores import block_scores
from retrieval_engine.train.head.pairs import FeaturePairs
from retrieval_engine.train.head.recipe import CaptionChoice, HeadRecipe, Loss

_SMALLEST_BATCH, _LARGEST_BATCH = 64, 1024
_STEPS = 5
_MINED_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadBatch:
    """One step's images and captions.

    Attributes:
        images: (b,) rows of `FeaturePairs.images`.
        texts: (u,) rows of `FeaturePairs.texts`. With all captions each once; with one for each image
            (b,) in the order of the images, where a sentence that several share is there as
            often: it must be as strong a negative as it is frequent, or images drift towards
            sentences that say little.
        positive: (b, u) True where a text is a caption of the image.
    """

    images: Tensor
    texts: Tensor
    positive: Tensor


def batch_size(recipe: HeadRecipe, images: int) -> int:
    """Images in a step: what the recipe says, or a fifth of them, but 64 to 1,024."""
    usual = min(max(-(-images // _STEPS), _SMALLEST_BATCH), _LARGEST_BATCH)
    return min(recipe.batch_size or usual, images)


def epoch(
    pairs: FeaturePairs, recipe: HeadRecipe, generator: torch.Generator, mined: Tensor | None
) -> Iterator[HeadBatch]:
    """Batches of one epoch: every image once, in random order.

    Args:
        pairs: what is learned from.
        recipe: its `captions`, `batch_size` and `loss` count.
        generator: of the order, on the CPU, so that every device sees the same.
        mined: (n, h) images that image i brings along, or None.
    """
    order = torch.randperm(len(pairs), generator=generator).to(pairs.images.device)
    size = batch_size(recipe, len(pairs))
    # No crumb at the end with hardly a negative; but the notebook's loader has one.
    even = order.tensor_split(-(-len(pairs) // size))
    for images in torch.split(order, size) if recipe.loss is Loss.DIAGONAL else even:
        if mined is not None:
            anchors = images[: -(-len(images) // (1 + mined.shape[1]))]
            images = torch.unique(torch.cat([anchors, mined[anchors].flatten()]))
        yield _batch(pairs, images, recipe, generator)


def _batch(
    pairs: FeaturePairs, images: Tensor, recipe: HeadRecipe, generator: torch.Generator
) -> HeadBatch:
    mine = pairs.captions[images]
    if recipe.captions is CaptionChoice.ALL:
        texts = torch.unique(mine[mine >= 0])
    else:
        column = torch.zeros(len(mine), dtype=torch.int64)
        if recipe.captions is CaptionChoice.ONE:
            counts = (mine >= 0).sum(1).cpu()
            column = (torch.rand(len(mine), generator=generator) * counts).long()
        texts = mine.gather(1, column.to(mine.device)[:, None])[:, 0]
    positive = mine[:, :1] == texts
    for column_of_all in mine.T[1:]:
        positive |= column_of_all[:, None] == texts
    return HeadBatch(images=images, texts=texts, positive=positive)


@torch.no_grad()
def mine(head: Head, pairs: FeaturePairs, count: int) -> Tensor:
    """For each image, others whose captions the head scores highest for it.

    A caption that the head puts above the image's own best one is passed over: it is most often
    true of the image as well (a near duplicate, the same short sentence in other words).

    Args:
        head: as it is now.
        pairs: what is learned from.
        count: images wanted for each.

    Returns:
        (n, count) rows of images.
    """
    owner, row = pairs.owners
    texts = head.texts(pairs.texts)[row]  # (m, d), one for each true pair
    found = []
    for start in range(0, len(pairs), _MINED_ROWS):
        part = pairs.images[start : start + _MINED_ROWS]
        similarity = block_scores(head.images(part), texts[:, None])
        own = owner == torch.arange(start, start + len(part), device=owner.device)[:, None]
        best = similarity.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        similarity = similarity.masked_fill(own | (similarity > best), -torch.inf)
        # Several captions of one image may be among the nearest; one time is enough.
        nearest = similarity.topk(min(count, similarity.shape[1]), dim=1).indices
        found.append(owner[nearest])
    return torch.cat(found)
