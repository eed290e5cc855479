"""From scores to probabilities: a logistic fit, and how far its word can be taken."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import EvaluationError
from retrieval_engine.records import Json

Floats = NDArray[np.float64]
_RIDGE = 1e-2  # of standardised features: keeps a separable fit finite
_STEPS = 50
BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Logistic:
    """Probability of a match from features (Platt, 1999, with several of them).

    Attributes:
        weights: one a feature, of the features as they are.
        bias: added to their sum.
    """

    weights: tuple[float, ...]
    bias: float

    def __call__(self, features: Floats) -> Floats:
        """(n,) probabilities of (n, f) features."""
        logits = np.asarray(features, np.float64) @ np.array(self.weights) + self.bias
        made: Floats = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
        return made


def fit_logistic(features: Floats, match: NDArray[np.bool_], weight: Floats) -> Logistic:
    """The logistic regression of matches on features, by Newton's method with a small ridge.

    Args:
        features: (n, f), finite.
        match: (n,).
        weight: (n,) of each row.

    Raises:
        EvaluationError: all rows match, or none.
    """
    if match.all() or not match.any():
        raise EvaluationError("a calibration needs pairs that match and pairs that do not")
    mean, scale = features.mean(axis=0), features.std(axis=0).clip(1e-9)
    design = np.hstack([(features - mean) / scale, np.ones((len(features), 1))])
    ridge = _RIDGE * np.eye(design.shape[1])
    ridge[-1, -1] = 0
    # Platt's targets: a little short of certain, by how little was seen.
    counts = match.sum(), (~match).sum()
    target = np.where(match, (counts[0] + 1) / (counts[0] + 2), 1 / (counts[1] + 2))
    beta = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(design @ beta, -50, 50)))
        slope = design.T @ (weight * (chance - target)) + ridge @ beta
        bend = (design * (weight * chance * (1 - chance))[:, None]).T @ design + ridge
        bend[-1, -1] += 1e-9
        step = np.linalg.solve(bend, slope)
        beta = beta - np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-9:
            break
    weights = beta[:-1] / scale
    return Logistic(weights=tuple(weights.tolist()), bias=float(beta[-1] - mean @ weights))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How well probabilities keep their word.

    Attributes:
        low: (b,) lower bound of each bin.
        said: (b,) mean probability in it, NaN where it is empty.
        was: (b,) share of matches in it, likewise.
        weight: (b,) share of all rows in it.
        ece: expected calibration error, the mean difference of the two (Guo et al., ICML 2017).
        brier: mean squared difference of probability and outcome.
    """

    low: tuple[float, ...]
    said: tuple[float, ...]
    was: tuple[float, ...]
    weight: tuple[float, ...]
    ece: float
    brier: float

    def to_json(self) -> dict[str, Json]:
        """As JSON values; empty bins are left out."""
        rows = zip(self.low, self.said, self.was, self.weight, strict=True)
        curve: list[Json] = [
            {"from": low, "said": round(said, 4), "was": round(was, 4), "share": round(share, 4)}
            for low, said, was, share in rows
            if share
        ]
        return {"ece": round(self.ece, 5), "brier": round(self.brier, 5), "curve": curve}


def reliability(
    probability: Floats, match: NDArray[np.bool_], weight: Floats, bins: int = BINS
) -> Reliability:
    """The reliability curve in bins of equal width.

    Args:
        probability: (n,) in [0, 1].
        match: (n,).
        weight: (n,) of each row.
        bins: how many.
    """
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    share = np.bincount(place, weight, bins)
    with np.errstate(invalid="ignore"):
        said = np.bincount(place, weight * probability, bins) / share
        was = np.bincount(place, weight * match, bins) / share
    share = share / share.sum()
    known = share > 0
    return Reliability(
        low=tuple((np.arange(bins) / bins).tolist()),
        said=tuple(said.tolist()),
        was=tuple(was.tolist()),
        weight=tuple(share.tolist()),
        ece=float((share[known] * np.abs(said - was)[known]).sum()),
        brier=float(np.average((probability - match) ** 2, weights=weight)),
    )


def share_of(values: Sequence[bool] | NDArray[np.bool_]) -> float:
    """The part that is true, 0 of none."""
    return float(np.mean(values)) if len(values) else 0.0
