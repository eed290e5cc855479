"""BLEU-1 to BLEU-4 of a corpus: Papineni et al. (ACL 2002), as the COCO caption tools compute it.

Of several references the one closest in length gives the brevity penalty (the shorter of two
equally close). Not to be confused with a mean of sentence scores: the corpus's counts are summed
first, and that sum is what papers report.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.metrics.ngrams import Ngram, Tokens, ngram_counts

ORDERS = 4
# The COCO tools' guards against division by zero; they show in the last digits.
_SMALL, _TINY = 1e-9, 1e-15


def bleu_statistics(caption: Tokens, references: Sequence[Tokens]) -> NDArray[np.float64]:
    """What one caption adds to the corpus's counts.

    Args:
        caption: its tokens.
        references: tokens of each reference, at least one.

    Returns:
        (10,) float64: matched n-grams of 1..4, n-grams of 1..4 in the caption, its length, and the
        length of the closest reference. Rows of a corpus are summed.
    """
    best: Counter[Ngram] = Counter()
    for reference in references:
        best |= ngram_counts(reference)  # the larger count of the two
    closest = min((abs(len(r) - len(caption)), len(r)) for r in references)[1]
    return statistics_against(caption, best, closest)


def statistics_against(
    caption: Tokens, allowed: Counter[Ngram], closest: int
) -> NDArray[np.float64]:
    """`bleu_statistics` where each n-gram's largest reference count is already known."""
    found = np.zeros(2 * ORDERS + 2)
    for ngram, count in ngram_counts(caption).items():
        found[len(ngram) - 1] += min(count, allowed[ngram])
        found[ORDERS + len(ngram) - 1] += count
    found[-2:] = len(caption), closest
    return found


def bleu(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """BLEU-1..4 from summed statistics.

    Args:
        statistics: (..., 10) sums of `bleu_statistics`; one row alone gives a sentence's score.

    Returns:
        (..., 4) in [0, 1].
    """
    matched, total = statistics[..., :ORDERS], statistics[..., ORDERS : 2 * ORDERS]
    precision = (matched + _TINY) / (total + _SMALL)
    means = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (statistics[..., -2:-1] + _TINY) / (statistics[..., -1:] + _SMALL)
    penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    scores: NDArray[np.float64] = means * penalty
    return scores
