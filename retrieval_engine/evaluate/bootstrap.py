"""How far a figure would move with another sample of images: the percentile bootstrap.

Images are drawn with replacement and bring all their captions along (captions of one image are
not independent). The gallery stays as it is: a draw repeats and leaves out queries, not candidates.
Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import UsageError
from retrieval_engine.evaluate.ranks import NO_QUERY, Ints
from retrieval_engine.evaluate.recall import RecallReport
from retrieval_engine.records import Json

Floats = NDArray[np.float64]
Interval = tuple[float, float]
_COUNTS_AT_ONCE = 1 << 23  # float64 numbers of one block of draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How the intervals are drawn.

    Attributes:
        draws: number of resamples; 0 leaves intervals out.
        level: share of the draws inside the interval.
        seed: of the draws; equal seeds give equal intervals.
    """

    draws: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 0 or not 0 < self.level < 1:
            raise UsageError(
                f"bootstrap needs draws >= 0 and 0 < level < 1, got {self.draws} and {self.level}"
            )

    def sums(self, statistics: Floats) -> Floats:
        """Sums over resampled rows.

        Args:
            statistics: (n, s), one row of additive statistics per image.

        Returns:
            (draws, s): for each draw the sum over n rows drawn with replacement.
        """
        n = len(statistics)
        rng = np.random.default_rng(self.seed)
        blocks = [counts @ statistics for counts in self._counts(n, rng)]
        return np.concatenate(blocks) if blocks else np.empty((0, statistics.shape[1]))

    def interval(self, values: Floats) -> Interval:
        """The central interval of the draws' values."""
        tail = 100 * (1 - self.level) / 2
        low, high = np.percentile(values, (tail, 100 - tail))
        return float(low), float(high)

    def _counts(self, n: int, rng: np.random.Generator) -> Iterator[Floats]:
        step = max(1, _COUNTS_AT_ONCE // n)
        for start in range(0, self.draws, step):
            drawn = rng.integers(0, n, (min(step, self.draws - start), n))
            yield np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)

    def to_json(self) -> dict[str, Json]:
        """How it was drawn, for a certificate."""
        return {
            "level": self.level,
            "draws": self.draws,
            "seed": self.seed,
            "resampled": "images with all their captions",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallIntervals:
    """Where a report's recalls may lie, in percent; both directions by `R@k`."""

    image_to_text: dict[str, Interval]
    text_to_image: dict[str, Interval]
    mean_recall: Interval

    def to_json(self) -> dict[str, Json]:
        """The bounds as lists of two."""

        def lists(side: dict[str, Interval]) -> dict[str, Json]:
            return {name: list(bounds) for name, bounds in side.items()}

        return {
            "image_to_text": lists(self.image_to_text),
            "text_to_image": lists(self.text_to_image),
            "mean_recall": list(self.mean_recall),
        }


def recall_intervals(
    report: RecallReport, bootstrap: Bootstrap | None = None
) -> RecallIntervals | None:
    """Intervals of a report's recalls.

    Args:
        report: what `recall` or `evaluate_recall` gave.
        bootstrap: how to draw; 1,000 draws at 95 % by default.

    Returns:
        The intervals, or None for no draws.
    """
    bootstrap = bootstrap or Bootstrap()
    if not bootstrap.draws:
        return None
    ks, n = list(report.image_to_text.recall), report.n_images
    image_hits = _hits(report.ranks.image_to_text, np.arange(n), n, ks)
    caption_hits = _hits(report.ranks.text_to_image, report.caption_image, n, ks)
    # Both directions from the same draws, so that their mean is that of one sample.
    sums = bootstrap.sums(np.concatenate([image_hits, caption_hits], axis=1))
    to_text, to_image = (100 * side[:, :-1] / side[:, -1:] for side in np.split(sums, 2, axis=1))
    return RecallIntervals(
        image_to_text={f"R@{k}": bootstrap.interval(to_text[:, i]) for i, k in enumerate(ks)},
        text_to_image={f"R@{k}": bootstrap.interval(to_image[:, i]) for i, k in enumerate(ks)},
        mean_recall=bootstrap.interval((to_text + to_image).mean(axis=1) / 2),
    )


def _hits(ranks: Ints, image: Ints, n_images: int, ks: list[int]) -> Floats:
    """(n_images, len(ks) + 1): hits within each k, and queries, summed over an image's queries."""
    asked = ranks != NO_QUERY
    columns = [asked & (ranks < k) for k in ks] + [asked]
    return np.stack([np.bincount(image, c, minlength=n_images) for c in columns], axis=1)
