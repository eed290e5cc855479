"""Exact ranks in both directions from one pass over the similarities, block by block.

The score of an image and a caption is the largest inner product of their vectors, and it is
defined exactly: on the stored vectors, summed in float64. Blocks are multiplied in float32 for
speed. The last bits of such products depend on the block's shape and on the device, so they
decide only what lies further from the positive's score than float32 can be wrong; the few pairs
within that bound are scored again in float64. Ranks are therefore the same for every block size,
thread count and device, and equal vectors tie exactly.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrieval_engine.errors import EvaluationError, ShapeError, one_of
from retrieval_engine.metrics.pair_scores import (
    Ints,
    Vectors,
    block_scores,
    exact_scores,
    float32_error,
    float32_products,
    largest_norm,
)
from retrieval_engine.metrics.race import Race, Ties

ImageBlocks = Callable[[], Iterable[tuple[int, Vectors]]]

NO_QUERY = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Which candidates are one and the same: equal numbers stand for equal bytes or equal text.

    A sentence that is, word for word, a caption of the image is no wrong answer because it was
    written for another image as well; nor is a second copy of the picture. Such candidates do not
    beat the positive they equal. (With `Ties.PESSIMISTIC` they do: it is the lower bound.)

    Attributes:
        images: (n,) of the images.
        captions: (m,) of the captions.
    """

    images: Ints
    captions: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """0-based rank of each query's best-ranked positive.

    Attributes:
        image_to_text: (n,) int64 over the gallery's images; `NO_QUERY` where an image has no
            caption. Other captions of the same image never stand in the way.
        text_to_image: (m,) int64 over the captions.
        n_tied: queries of both directions whose positive shares its score with a wrong
            candidate, so that the tie rule has a say.
    """

    image_to_text: Ints
    text_to_image: Ints
    n_tied: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How much is multiplied at once; it changes speed and memory, never a rank.

    Attributes:
        vectors: image vectors in a block (an image with 32 vectors counts 32).
        captions: captions in a block.
    """

    vectors: int = 512
    captions: int = 2048

    @classmethod
    def for_device(cls, device: str) -> "Tiles":
        """Blocks that stay in a core's cache, or that keep a GPU busy."""
        return cls() if device == "cpu" else cls(vectors=8192, captions=16384)


def rank(  # noqa: PLR0913  the eighth is another fact about the same gallery
    images: ImageBlocks,
    captions: Vectors,
    caption_image: Ints,
    *,
    n_images: int,
    contents: Contents | None = None,
    ties: Ties = Ties.LOWER_INDEX,
    device: str = "cpu",
    tiles: Tiles | None = None,
) -> Ranks:
    """Ranks of both directions over all images and all captions.

    Args:
        images: called twice; each call yields (first row, (b, q, d) block) over all images in
            order. float16 or float32.
        captions: (m, r, d), r = 1 for BLIP and BLIP-2. float16 or float32.
        caption_image: (m,) row of each caption's image.
        n_images: number of images.
        contents: which images and captions are one and the same; None when all differ.
        ties: see `Ties`.
        device: where blocks are multiplied, as torch names it.
        tiles: block sizes; by default what suits the device.

    Raises:
        ShapeError: arrays do not fit together.
        EvaluationError: a vector holds NaN or infinity, or there is no caption.
    """
    asked = _Captions.of(captions, caption_image, n_images)
    ties = one_of(Ties, "ties", ties)
    same = contents if ties is not Ties.PESSIMISTIC else None
    to_text = Race.of(n_images, same.captions if same else None, ties)
    to_image = Race.of(len(captions), same.images if same else None, ties)
    norms = largest_norm("caption", captions)
    norms *= _score_positives(images(), asked, to_text, to_image)
    margin = float32_error(captions.shape[-1], norms)
    with float32_products("highest"), torch.inference_mode():
        for tile in _tiles(images(), asked, tiles or Tiles.for_device(device), device):
            scores = block_scores(tile.on_device, tile.captions_on_device.float())
            scores[tile.own] = -torch.inf  # neither beats its best positive nor stands in its way
            image, caption = to_text.screen(scores, tile.image, margin)
            exact = exact_scores(tile.images, tile.captions, image, caption)
            to_text.settle(image + tile.image, caption + tile.caption, exact)
            caption, image = to_image.screen(scores.T, tile.caption, margin)
            exact = exact_scores(tile.images, tile.captions, image, caption)
            to_image.settle(caption + tile.caption, image + tile.image, exact)
    return Ranks(
        image_to_text=np.where(np.isfinite(to_text.score), to_text.beaten_by, NO_QUERY),
        text_to_image=to_image.beaten_by,
        n_tied=int(to_text.tied.sum() + to_image.tied.sum()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Captions:
    """The captions, and whose they are.

    Attributes:
        vectors: (m, r, d).
        image: (m,) row of each caption's image.
        by_image: (m,) rows of the captions, by image and then by index.
    """

    vectors: Vectors
    image: Ints
    by_image: Ints

    @classmethod
    def of(cls, vectors: Vectors, image: Ints, n_images: int) -> "_Captions":
        if vectors.ndim != 3 or image.shape != (len(vectors),):
            raise ShapeError(
                f"captions are {vectors.shape} with images {image.shape}; "
                "expected (m, r, d) and (m,)"
            )
        if not len(vectors):
            raise EvaluationError(
                f"none of the {n_images} images has a caption: there is nothing to ask",
                hint="encode a source that has captions, such as a folder with a.txt beside a.jpg",
            )
        if image.min() < 0 or image.max() >= n_images:
            raise ShapeError(f"captions name images {image.min()}..{image.max()} of {n_images}")
        return cls(vectors=vectors, image=image, by_image=np.argsort(image, kind="stable"))

    def of_images(self, start: int, stop: int) -> Ints:
        """Rows of the captions of the images in [start, stop), by image and then by index."""
        edges = np.searchsorted(self.image, (start, stop), sorter=self.by_image)
        return self.by_image[edges[0] : edges[1]]


def _score_positives(
    blocks: Iterable[tuple[int, Vectors]], captions: _Captions, to_text: Race, to_image: Race
) -> float:
    """Fill in the positives of both directions; the result is the images' largest norm."""
    largest = 0.0
    for start, block in blocks:
        if block.shape[-1] != captions.vectors.shape[-1]:
            raise ShapeError(
                f"images have {block.shape[-1]} dimensions, captions {captions.vectors.shape[-1]}"
            )
        largest = max(largest, largest_norm("image", block, first=start))
        own = captions.of_images(start, start + len(block))
        image = captions.image[own]
        score = exact_scores(block, captions.vectors, image - start, own)
        to_image.score[own], to_image.index[own] = score, image
        # Worst to best, so that the last write of an image is its best: highest score, and of
        # equal ones the lowest index.
        order = np.lexsort((-own, score))
        to_text.score[image[order]], to_text.index[image[order]] = score[order], own[order]
    return largest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile:
    """Some images against some captions.

    Attributes:
        image: row of the first image.
        caption: row of the first caption.
        images: (b, q, d).
        captions: (c, r, d).
        on_device: the images, float32.
        captions_on_device: the captions as they are stored.
        own: rows and columns of those pairs that belong together.
    """

    image: int
    caption: int
    images: Vectors
    captions: Vectors
    on_device: Tensor
    captions_on_device: Tensor
    own: tuple[Ints, Ints]


def _tiles(
    blocks: Iterable[tuple[int, Vectors]], captions: _Captions, tiles: Tiles, device: str
) -> Iterator[_Tile]:
    """Every image against every caption, a tile at a time."""
    resident = torch.from_numpy(np.require(captions.vectors, requirements=["C", "W"])).to(device)
    for start, block in _blocks_of(blocks, tiles.vectors):
        vectors = torch.from_numpy(block).to(device, torch.float32)
        own = captions.of_images(start, start + len(block))
        for first in range(0, len(resident), tiles.captions):
            some = slice(first, first + tiles.captions)
            here = own[(own >= first) & (own < some.stop)]
            yield _Tile(
                image=start,
                caption=first,
                images=block,
                captions=captions.vectors[some],
                on_device=vectors,
                captions_on_device=resident[some],
                own=(captions.image[here] - start, here - first),
            )


def _blocks_of(
    blocks: Iterable[tuple[int, Vectors]], vectors: int
) -> Iterator[tuple[int, Vectors]]:
    """The same rows in blocks of at most so many vectors, one image at least."""
    for start, block in blocks:
        step = max(1, vectors // block.shape[1])
        for first in range(0, len(block), step):
            part = np.require(block[first : first + step], requirements=["C", "W"])
            yield start + first, part
