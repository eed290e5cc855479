"""Figures where a query has several right answers: R@K, R-Precision and mAP@R.

As ECCV Caption defines them (Chun et al., ECCV 2022; mAP@R is of Musgrave et al., ECCV
2020): of a query with R right answers, R-Precision is the part of them among the first R, mAP@R the
mean over the first R places of the precision up to there, a wrong place counting 0. R@K asks
whether any of the right ones is among the first K, as CxC does (Parekh et al., EACL 2021).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import EvaluationError
from retrieval_engine.records import Json

Ints = NDArray[np.int64]

_QUERIES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedReport:
    """One direction.

    Attributes:
        recall: percentage of queries with a right answer within each k.
        r_precision: mean, in per cent.
        map_at_r: mean, in per cent.
        n_queries: queries with a right answer.
        n_positives: right answers of all of them.
    """

    recall: dict[int, float]
    r_precision: float
    map_at_r: float
    n_queries: int
    n_positives: int

    def to_json(self) -> dict[str, Json]:
        """`R@1`, …, `R-Precision` and `mAP@R` in per cent."""
        figures: dict[str, Json] = {f"R@{k}": value for k, value in self.recall.items()}
        return figures | {
            "R-Precision": self.r_precision,
            "mAP@R": self.map_at_r,
            "n_queries": self.n_queries,
            "n_positives": self.n_positives,
        }


def extended_report(
    scores: Callable[[Ints], NDArray[np.float64]],
    positives: Sequence[Sequence[int]],
    *,
    ks: Sequence[int],
) -> ExtendedReport:
    """The figures of queries that have several right answers.

    Args:
        scores: (b, c) of the queries with these numbers and all candidates. Of equal ones the
            lower number is first.
        positives: for each query the numbers of its right answers; those without ask nothing.
        ks: cutoffs.

    Raises:
        EvaluationError: no query has a right answer, or a score is NaN.
    """
    asked = np.array([q for q, right in enumerate(positives) if len(right)], np.int64)
    if not len(asked):
        raise EvaluationError("no query has a right answer among what is evaluated")
    found, precision, average = [], [], []
    for start in range(0, len(asked), _QUERIES):
        block = asked[start : start + _QUERIES]
        table = scores(block)
        if np.isnan(table).any():
            raise EvaluationError("a score is NaN")
        longest = max(max(ks), max(len(positives[q]) for q in block.tolist()))
        ranked = _first(table, min(longest, table.shape[1]))
        for row, query in enumerate(block.tolist()):
            hit = np.isin(ranked[row], np.array(list(set(positives[query])), np.int64))
            right = len(set(positives[query]))
            found.append([bool(hit[:k].any()) for k in ks])
            within = hit[:right]
            precision.append(within.sum() / right)
            above = np.cumsum(within) / np.arange(1, len(within) + 1)
            average.append((above * within).sum() / right)
    recall = np.mean(found, axis=0)
    return ExtendedReport(
        recall={k: 100 * float(recall[i]) for i, k in enumerate(ks)},
        r_precision=100 * float(np.mean(precision)),
        map_at_r=100 * float(np.mean(average)),
        n_queries=len(asked),
        n_positives=sum(len(set(positives[q])) for q in asked.tolist()),
    )


def _first(scores: NDArray[np.float64], count: int) -> Ints:
    """(b, count) numbers of the largest scores in order; of equal ones the lower number first."""
    least = -np.partition(-scores, count - 1, axis=1)[:, count - 1 : count]
    made = np.empty((len(scores), count), np.int64)
    for row, (values, bound) in enumerate(zip(scores, least, strict=True)):
        among = np.flatnonzero(values >= bound)
        made[row] = among[np.lexsort((among, -values[among]))][:count]
    return made
