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
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval_engine.errors import EvaluationError, ShapeError
from retrieval_engine.evaluate.pair_scores import (
    Scores,
    Vectors,
    block_scores,
    exact_scores,
    full_float32,
    largest_norm,
)

Ints = NDArray[np.int64]
ImageBlocks = Callable[[], Iterable[tuple[int, Vectors]]]

NO_QUERY = -1
_UNIT_ROUNDOFF = 2.0**-24


class Ties(StrEnum):
    """What happens between a positive and another candidate of exactly the same score.

    `LOWER_INDEX` puts the lower index first: a collapsed model, whose scores are all equal, gets
    chance level. `PESSIMISTIC` puts every equal candidate before the positive, `OPTIMISTIC` none:
    the two bounds. Code that counts `score > positive` reports the optimistic one, with which a
    collapsed model scores 100 %.
    """

    LOWER_INDEX = "lower-index"
    PESSIMISTIC = "pessimistic"
    OPTIMISTIC = "optimistic"


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
    _check(captions, caption_image, n_images)
    tiles = tiles or Tiles.for_device(device)
    by_image = np.argsort(caption_image, kind="stable")
    same = contents if ties is not Ties.PESSIMISTIC else None
    to_text = _Race.of(n_images, same.captions if same else None)
    to_image = _Race.of(len(captions), same.images if same else None)
    norms = largest_norm("caption", captions)
    norms *= _score_positives(images(), captions, caption_image, by_image, (to_text, to_image))
    # |fl(x.y) - x.y| <= g |x||y| with g = d u / (1 - d u) in any order of summation; 4 more
    # roundings and 1 % cover the norms and the thresholds themselves.
    margin = (captions.shape[-1] + 4) * _UNIT_ROUNDOFF * 1.01 * norms
    resident = torch.from_numpy(np.require(captions, requirements=["C", "W"])).to(device)
    with full_float32(), torch.inference_mode():
        for start, block in _tiled(images(), tiles.vectors):
            vectors = torch.from_numpy(block).to(device, torch.float32)
            own = _captions_of(start, start + len(block), caption_image, by_image)
            for first in range(0, len(captions), tiles.captions):
                some = slice(first, first + tiles.captions)
                scores = block_scores(vectors, resident[some].float())
                here = own[(own >= first) & (own < first + scores.shape[1])]
                # A query's own candidates neither beat its best positive nor stand in its way.
                scores[caption_image[here] - start, here - first] = -torch.inf
                pairs = _screen(to_text, scores, start, margin)
                exact = exact_scores(block, captions[some], *pairs)
                to_text.settle(pairs[0] + start, pairs[1] + first, exact, ties)
                texts, pictures = _screen(to_image, scores.T, first, margin)
                exact = exact_scores(block, captions[some], pictures, texts)
                to_image.settle(texts + first, pictures + start, exact, ties)
    return Ranks(
        image_to_text=np.where(np.isfinite(to_text.score), to_text.beaten_by, NO_QUERY),
        text_to_image=to_image.beaten_by,
        n_tied=int(to_text.tied.sum() + to_image.tied.sum()),
    )


def ranks_of_scores(
    scores: Vectors, positive: NDArray[np.bool_], ties: Ties = Ties.LOWER_INDEX
) -> Ints:
    """Rank of each query's best-ranked positive among scores that are already known.

    Args:
        scores: (queries, candidates), larger is closer.
        positive: (queries, candidates), True where the candidate is right.
        ties: see `Ties`; of equal positives the lower index stands for the query.

    Returns:
        (queries,) int64, 0-based; `NO_QUERY` where a query has no positive.

    Raises:
        ShapeError: the two arrays differ in shape.
        EvaluationError: a score is NaN.
    """
    if scores.shape != positive.shape or scores.ndim != 2:
        raise ShapeError(f"scores {scores.shape} and positives {positive.shape} must be one shape")
    if (wrong := int(np.isnan(scores).sum())) > 0:
        raise EvaluationError(f"{wrong} of {scores.size} scores are NaN")
    own = np.where(positive, scores, -np.inf).max(axis=1, keepdims=True)  # (queries, 1)
    best = np.argmax(positive & (scores == own), axis=1)
    equal = (scores == own) & (ties is not Ties.OPTIMISTIC)
    if ties is Ties.LOWER_INDEX:
        equal &= np.arange(scores.shape[1]) < best[:, None]
    beaten_by = (((scores > own) | equal) & ~positive).sum(axis=1, dtype=np.int64)
    return np.where(positive.any(axis=1), beaten_by, NO_QUERY)


@dataclass(slots=True)
class _Race:
    """One direction: each query's best positive, and how many candidates have beaten it so far.

    Attributes:
        score: (queries,) of the best positive; +inf, which nothing beats, where there is none.
        index: (queries,) the best positive's index among the candidates.
        beaten_by: (queries,) candidates found in front of it.
        tied: (queries,) True where a wrong candidate has exactly its score.
        content: of each candidate, see `Contents`; None when all differ.
    """

    score: Scores
    index: Ints
    beaten_by: Ints
    tied: NDArray[np.bool_]
    content: Ints | None

    @classmethod
    def of(cls, queries: int, content: Ints | None) -> "_Race":
        unknown = np.full(queries, np.inf)
        zeros = np.zeros((2, queries), np.int64)
        return cls(unknown, zeros[0], zeros[1], np.zeros(queries, np.bool_), content)

    def settle(self, query: Ints, candidate: Ints, score: Scores, ties: Ties) -> None:
        """Count those of the (query, candidate) pairs whose exact score wins."""
        if self.content is not None:
            other = self.content[candidate] != self.content[self.index[query]]
            query, candidate, score = query[other], candidate[other], score[other]
        wins = score > self.score[query]
        equal = score == self.score[query]
        self.tied[query[equal]] = True
        if ties is Ties.LOWER_INDEX:
            equal &= candidate < self.index[query]
        elif ties is Ties.OPTIMISTIC:
            equal[:] = False
        np.add.at(self.beaten_by, query[wins | equal], 1)


def _score_positives(
    blocks: Iterable[tuple[int, Vectors]],
    captions: Vectors,
    caption_image: Ints,
    by_image: Ints,
    races: tuple[_Race, _Race],
) -> float:
    """Fill in the positives of both directions; the result is the images' largest norm."""
    to_text, to_image = races
    largest = 0.0
    for start, block in blocks:
        if block.shape[-1] != captions.shape[-1]:
            raise ShapeError(
                f"images have {block.shape[-1]} dimensions, captions {captions.shape[-1]}"
            )
        largest = max(largest, largest_norm("image", block, first=start))
        own = _captions_of(start, start + len(block), caption_image, by_image)
        image = caption_image[own]
        score = exact_scores(block, captions, image - start, own)
        to_image.score[own], to_image.index[own] = score, image
        # Worst to best, so that the last write of an image is its best: highest score, and of
        # equal ones the lowest index.
        order = np.lexsort((-own, score))
        to_text.score[image[order]], to_text.index[image[order]] = score[order], own[order]
    return largest


def _screen(race: _Race, scores: Tensor, start: int, margin: float) -> tuple[Ints, Ints]:
    """Count the candidates that surely win; give back those too close to tell in float32.

    Args:
        race: the direction's running count.
        scores: (queries, candidates) float32 block.
        start: index of the block's first query in the race.
        margin: how far a float32 score may be from the exact one.

    Returns:
        The close pairs' rows and columns in the block.
    """
    reach = race.score[start : start + len(scores)]
    low, high = (
        torch.from_numpy(np.nextafter((reach + side * margin).astype(np.float32), side * np.inf))
        .float()
        .to(scores.device)
        for side in (np.float32(-1), np.float32(1))
    )
    # Most rows of a good model hold nothing near the positive: one maximum settles them.
    hot = (scores.amax(1) >= low).nonzero()[:, 0]
    rows = scores[hot]
    wins = rows > high[hot, None]
    row, column = (wins ^ (rows >= low[hot, None])).nonzero(as_tuple=True)
    hot_here = hot.cpu().numpy()
    race.beaten_by[start + hot_here] += wins.sum(1).cpu().numpy()
    return hot_here[row.cpu().numpy()], column.cpu().numpy()


def _tiled(blocks: Iterable[tuple[int, Vectors]], vectors: int) -> Iterator[tuple[int, Vectors]]:
    """The same rows in blocks of at most so many vectors, one image at least."""
    for start, block in blocks:
        step = max(1, vectors // block.shape[1])
        for first in range(0, len(block), step):
            part = np.require(block[first : first + step], requirements=["C", "W"])
            yield start + first, part


def _captions_of(start: int, stop: int, caption_image: Ints, by_image: Ints) -> Ints:
    """Captions of the images in [start, stop), by image and then by index."""
    edges = np.searchsorted(caption_image, (start, stop), sorter=by_image)
    return by_image[edges[0] : edges[1]]


def _check(captions: Vectors, caption_image: Ints, n_images: int) -> None:
    if captions.ndim != 3 or caption_image.shape != (len(captions),):
        raise ShapeError(
            f"captions are {captions.shape} with images {caption_image.shape}; "
            "expected (m, r, d) and (m,)"
        )
    if not len(captions):
        raise EvaluationError(
            f"none of the {n_images} images has a caption: there is nothing to ask",
            hint="encode a source that has captions, such as a folder with a.txt beside a.jpg",
        )
    if caption_image.min() < 0 or caption_image.max() >= n_images:
        raise ShapeError(
            f"captions name images {caption_image.min()}..{caption_image.max()} of {n_images}"
        )
