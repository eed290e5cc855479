"""Recall@K of image-caption retrieval: exact, both directions, all captions.

Image to text: an image counts at k when any of its captions is among its k nearest. Text to
image: each caption asks for its own image. Hodosh et al. (JAIR 2013), with five captions an image
as in Karpathy and Fei-Fei (CVPR 2015). Ties and NaN as in `ranks`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval_engine.errors import ShapeError, UsageError, one_of
from retrieval_engine.metrics.pair_scores import Ints, Vectors
from retrieval_engine.metrics.race import Ties
from retrieval_engine.metrics.ranks import NO_QUERY, Ranks, rank
from retrieval_engine.records import Json

KS = (1, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionReport:
    """What one direction came to.

    Attributes:
        recall: percentage of queries answered within each k.
        median_rank: 1-based.
        mean_rank: 1-based.
        n_queries: number of queries; images without captions ask nothing.
    """

    recall: dict[int, float]
    median_rank: float
    mean_rank: float
    n_queries: int

    @classmethod
    def of(cls, ranks: Ints, ks: Sequence[int]) -> "DirectionReport":
        """The figures of 0-based ranks; those that are `NO_QUERY` do not count."""
        asked = ranks[ranks != NO_QUERY]
        return cls(
            recall={k: 100 * recall_at_k(asked, k) for k in ks},
            median_rank=float(np.median(asked)) + 1,
            mean_rank=float(asked.mean()) + 1,
            n_queries=len(asked),
        )

    def to_json(self) -> dict[str, Json]:
        """`R@1`, … in percent, ranks 1-based."""
        figures: dict[str, Json] = {f"R@{k}": value for k, value in self.recall.items()}
        return figures | {
            "median_rank": self.median_rank,
            "mean_rank": self.mean_rank,
            "n_queries": self.n_queries,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallReport:
    """Recall of a gallery, with all that is needed to compute its spread.

    Attributes:
        n_images: images in the gallery, those without captions included.
        n_captions: captions in the gallery.
        n_without_captions: images that only stand in the way: distractors for text to image, no
            queries for image to text.
        image_to_text: figures of the images as queries.
        text_to_image: figures of the captions as queries.
        ranks: the rank of every query.
        caption_image: (m,) row of each caption's image.
        ties: the rule that was used.
        fingerprint: of the encoder; empty for bare arrays.
        seconds: wall time of the ranking.
    """

    n_images: int
    n_captions: int
    n_without_captions: int
    image_to_text: DirectionReport
    text_to_image: DirectionReport
    ranks: Ranks
    caption_image: Ints
    ties: Ties
    fingerprint: str = ""
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        ranks: Ranks,
        caption_image: Ints,
        *,
        ks: Sequence[int] = KS,
        ties: Ties = Ties.LOWER_INDEX,
        fingerprint: str = "",
        seconds: float = 0.0,
    ) -> "RecallReport":
        """The figures that follow from ranks, wherever those come from.

        Raises:
            UsageError: a k is below 1.
        """
        if not ks or min(ks) < 1:
            raise UsageError(f"recall needs cutoffs of at least 1, got {list(ks)}")
        return cls(
            n_images=len(ranks.image_to_text),
            n_captions=len(ranks.text_to_image),
            n_without_captions=int((ranks.image_to_text == NO_QUERY).sum()),
            image_to_text=DirectionReport.of(ranks.image_to_text, ks),
            text_to_image=DirectionReport.of(ranks.text_to_image, ks),
            ranks=ranks,
            caption_image=caption_image,
            ties=one_of(Ties, "ties", ties),
            fingerprint=fingerprint,
            seconds=seconds,
        )

    @property
    def mean_recall(self) -> float:
        """Mean of all recalls of both directions in percent (the field's R@mean, rsum / 6)."""
        values = [*self.image_to_text.recall.values(), *self.text_to_image.recall.values()]
        return sum(values) / len(values)

    @property
    def mean_reciprocal_rank(self) -> float:
        """Mean over both directions of the mean of 1 / (1 + rank), in [0, 1]."""
        directions = (self.ranks.image_to_text, self.ranks.text_to_image)
        return float(np.mean([(1 / (1 + r[r != NO_QUERY])).mean() for r in directions]))

    def to_json(self) -> dict[str, Json]:
        """The figures as JSON values; percentages 0-100."""
        return {
            "n_images": self.n_images,
            "n_captions": self.n_captions,
            "n_images_without_captions": self.n_without_captions,
            "image_to_text": self.image_to_text.to_json(),
            "text_to_image": self.text_to_image.to_json(),
            "mean_recall": self.mean_recall,
            "ties": self.ties.value,
            "n_tied_queries": self.ranks.n_tied,
            "fingerprint": self.fingerprint,
            "seconds": round(self.seconds, 3),
        }


def recall_at_k(ranks: Ints, k: int) -> float:
    """Fraction of queries whose first relevant item is ranked within k.

    Args:
        ranks: (q,) 0-based rank of each query's best-ranked relevant item.
        k: cutoff, at least 1.

    Returns:
        A value in [0, 1].

    Raises:
        ValueError: k is below 1 or `ranks` is empty.

    Examples:
        >>> recall_at_k(np.array([0, 2, 0, 7]), k=1)
        0.5
    """
    if k < 1 or not len(ranks):
        raise ValueError(f"recall needs k >= 1 and at least one query, got k={k}, {len(ranks)}")
    return float((ranks < k).mean())


def recall(
    image_vectors: Vectors,
    caption_vectors: Vectors,
    caption_image: Ints,
    *,
    ks: Sequence[int] = KS,
    ties: Ties = Ties.LOWER_INDEX,
    device: str = "cpu",
) -> RecallReport:
    """Exact recall of arrays.

    Args:
        image_vectors: (n, q, d) or (n, d), float16 or float32; the score of an image is the
            largest inner product over its q vectors.
        caption_vectors: (m, 1, d) or (m, d).
        caption_image: (m,) row of each caption's image.
        ks: cutoffs.
        ties: see `Ties`.
        device: where the products are computed, as torch names it.

    Raises:
        ShapeError: the arrays do not fit together.
        EvaluationError: a vector holds NaN or infinity, or there is no caption.

    Examples:
        Two images, the first with two captions, of which the second is nearer to the other image:

        >>> images = np.array([[1, 0], [0, 1]], np.float32)
        >>> captions = np.array([[0.8, 0.6], [0.6, 0.8], [0, 1]], np.float32)
        >>> report = recall(images, captions, np.array([0, 0, 1]), ks=(1, 2))
        >>> report.image_to_text.recall  # any of an image's captions counts
        {1: 100.0, 2: 100.0}
        >>> round(report.text_to_image.recall[1], 1)  # each caption asks for its own image
        66.7
    """
    started = time.perf_counter()
    images, captions = rows_of_vectors(image_vectors), rows_of_vectors(caption_vectors)
    owner = np.asarray(caption_image, np.int64)
    ranks = rank(
        lambda: [(0, images)], captions, owner, n_images=len(images), ties=ties, device=device
    )
    seconds = time.perf_counter() - started
    return RecallReport.of(ranks, owner, ks=ks, ties=ties, seconds=seconds)


def rows_of_vectors(vectors: Vectors) -> Vectors:
    """(n, d) -> (n, 1, d); three axes stay as they are."""
    if vectors.ndim not in (2, 3):
        raise ShapeError(f"vectors must be (n, d) or (n, q, d), got {vectors.shape}")
    return vectors[:, None] if vectors.ndim == 2 else vectors
