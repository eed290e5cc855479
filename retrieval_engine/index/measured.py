"""How good and how quick an index is: recall@10 against exact search, and time of one query."""

import statistics
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.index.backends import Rows
from retrieval_engine.index.grouping import Allowed, Index, Items, Scores, read_only
from retrieval_engine.index.vectors import StoredVectors
from retrieval_engine.records import Modality
from retrieval_engine.store import Store

K = 10
SHARES = (0.5, 0.05, 0.001)
"""Filters that recall is measured under: so much of the items is left, drawn at random."""
FILTERED = 0.95
"""Recall that is kept under them, where any setting keeps it."""
_MAX_QUERIES = 1000
_MIN_QUERIES = 100
# Exact search over the sample stays under some ten seconds: queries times rows.
_COMPARISONS = 200_000_000
_TIMED_QUERIES = 100
# Two exact programs add the same products in another order; nearer scores than this are one tie.
_ROUNDING = 2e-6


class ExactAnswers(NamedTuple):
    """The right answers to a sample of queries.

    Attributes:
        queries: (q, d) float32.
        scores: (q, 2k) of exact search, best first.
        items: (q, 2k) item numbers.
        k: number of hits that are counted.
        allowed: (items,) what may be found; None for all.
    """

    queries: NDArray[np.float32]
    scores: Scores
    items: Items
    k: int
    allowed: Allowed | None = None


def sample_queries(
    store: Store, vectors: StoredVectors, seed: int
) -> tuple[NDArray[np.float32], Modality]:
    """Queries such as will be asked: captions where the store has them, else images.

    Args:
        store: where the vectors are.
        vectors: what is indexed.
        seed: of the sample.

    Returns:
        (q, dim) float32, at most 1,000, fewer for a large gallery; and which of the two they are.
    """
    rng = np.random.default_rng(seed)
    feature, side = vectors.feature.name, Modality.CAPTIONS
    rows = vectors.gallery.caption_rows
    if feature not in store.features(Modality.CAPTIONS) or not (rows >= 0).any():
        rows, side = vectors.gallery.image_rows, Modality.IMAGES
    rows = np.unique(rows[rows >= 0])
    wanted = max(_MIN_QUERIES, min(_MAX_QUERIES, _COMPARISONS // vectors.rows))
    picked = np.sort(rng.choice(rows, size=min(len(rows), wanted), replace=False))
    found = store.read(side, feature, picked).astype(np.float32)  # (q, v, dim)
    one_each = rng.integers(0, found.shape[1], size=len(found))
    queries: NDArray[np.float32] = found[np.arange(len(found)), one_each]
    return queries, side


def expect(
    exact: Index, queries: NDArray[np.float32], allowed: Allowed | None = None
) -> ExactAnswers:
    """The right answers, with as many again beyond them to know the ties at the last place."""
    k = min(K, exact.items if allowed is None else int(np.count_nonzero(allowed)))
    scores, items = exact.search(queries, 2 * k, allowed)
    return ExactAnswers(queries, scores, items, k, allowed)


def tune_filters(
    rows: Rows, index: Index, exact: Index, queries: NDArray[np.float32], seed: int
) -> dict[float, float]:
    """Set how much wider a filter makes a search: the least with which recall stays `FILTERED`.

    Args:
        rows: the backend's rows; those with `filter_efforts` can be set.
        index: an index over these rows.
        exact: the same vectors.
        queries: a quarter of them are asked.
        seed: of the filters.

    Returns:
        The recall@10 reached, by the share of the items that is left.
    """
    rng, expected = np.random.default_rng(seed), {}
    some = queries[: max(_MIN_QUERIES // 2, len(queries) // 4)]
    for share in SHARES:
        allowed = rng.random(exact.items) < share
        allowed[rng.integers(exact.items)] = True
        expected[share] = expect(exact, some, read_only(allowed))
    tried: dict[float, float] = {}
    for effort in getattr(rows, "filter_efforts", lambda: [rows.effort])():
        rows.set_effort(effort)
        tried = {share: recall_at_10(index, right) for share, right in expected.items()}
        if min(tried.values()) >= FILTERED:
            break
    return tried


def recall_at_10(index: Index, expected: ExactAnswers) -> float:
    """Share of the 10 best items that the index finds, mean over the queries, in [0, 1].

    An item whose score equals that of the 10th, up to rounding, is as right as the 10th.
    """
    _, items = index.search(expected.queries, expected.k, expected.allowed)
    threshold = expected.scores[:, expected.k - 1 : expected.k] - _ROUNDING
    right = np.where(expected.scores >= threshold, expected.items, -2)
    found = (items[:, :, None] == right[:, None, :]).any(axis=2)
    return float(found.mean())


def p50_ms(index: Index, queries: NDArray[np.float32]) -> float:
    """Median milliseconds of one search for the 10 best, one query at a time, after a warm-up."""
    times = []
    for i in range(_TIMED_QUERIES + 3):
        query = queries[i % len(queries)][None]
        begin = time.perf_counter()
        index.search(query, K)
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[3:])


def tune(rows: Rows, index: Index, expected: ExactAnswers, target: float) -> float:
    """Set the least search effort that reaches the target recall, and say the recall reached.

    Where none reaches it, the least effort within 0.001 of the best recall is taken.

    Args:
        rows: the backend's rows, which have `efforts` and `set_effort`.
        index: an index over these rows.
        expected: the right answers.
        target: recall@10 wanted, in (0, 1].
    """
    tried = []
    for effort in rows.efforts():
        rows.set_effort(effort)
        recall = recall_at_10(index, expected)
        tried.append((recall, effort))
        if recall >= target:
            return recall
    best = max(recall for recall, _ in tried)
    recall, effort = next((r, e) for r, e in tried if r >= best - 0.001)
    rows.set_effort(effort)
    return recall
