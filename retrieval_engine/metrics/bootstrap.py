"""How far a figure would move with another sample of images: the percentile bootstrap.

Images are drawn with replacement and bring all their captions along (captions of one image are
not independent). The gallery stays as it is: a draw repeats and leaves out queries, not candidates.
Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import UsageError
from retrieval_engine.records import Json

Floats = NDArray[np.float64]
Interval = tuple[float, float]
_COUNTS_AT_ONCE = 1 << 23  # float64 numbers of one block of draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How the intervals are drawn.

    Attributes:
        level: share of the draws inside the interval.
        draws: number of resamples; 0 leaves intervals out.
        seed: of the draws; equal seeds give equal intervals.
    """

    level: float = 0.95
    draws: int = 1000
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
        return asdict(self) | {"resampled": "images with all their captions"}
