"""Runs of words, counted."""

from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[str]
Ngram = tuple[str, ...]


def ngrams(tokens: Tokens, n: int) -> list[Ngram]:
    """Every run of n tokens, in order; none when there are fewer tokens."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def ngram_counts(tokens: Tokens) -> Counter[Ngram]:
    """How often each run of one to four tokens occurs."""
    counts: Counter[Ngram] = Counter()
    for n in range(1, 5):
        counts.update(ngrams(tokens, n))
    return counts
