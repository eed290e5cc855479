"""Whether captions say different things or one thing over and over.

High BLEU with few different captions is a collapsed model; none of the reference metrics shows it.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from retrieval_engine.metrics.bleu import bleu, statistics_against
from retrieval_engine.metrics.ngrams import Ngram, Tokens, ngram_counts, ngrams
from retrieval_engine.records import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """How varied a set of captions is. Shares and ratios lie in [0, 1].

    Attributes:
        vocabulary: number of different words.
        mean_length: words in a caption.
        distinct_1: different words by all words (Li et al., NAACL 2016); the type-token ratio
            under another name. It falls as the set grows: compare sets of one size.
        distinct_2: different word pairs by all word pairs.
        repetition_rate: word pairs that stood before in the same caption, by all word pairs.
        commonest_share: captions equal to the commonest one, by captions.
        distinct_captions: different captions by captions.
        self_bleu: mean BLEU-4 of each caption against all others (Zhu et al., SIGIR 2018);
            1 when each caption occurs twice.
    """

    vocabulary: int
    mean_length: float
    distinct_1: float
    distinct_2: float
    repetition_rate: float
    commonest_share: float
    distinct_captions: float
    self_bleu: float

    def to_json(self) -> dict[str, Json]:
        """The figures by name."""
        return {"type_token_ratio": self.distinct_1} | asdict(self)


def diversity(captions: Sequence[Tokens]) -> Diversity:
    """Figures of a set of captions.

    Args:
        captions: tokens of each, at least one caption.

    Examples:
        >>> figures = diversity(["a dog".split(), "a dog".split(), "a cat".split()])
        >>> figures.vocabulary, round(figures.commonest_share, 2)
        (3, 0.67)
    """
    words = Counter(word for caption in captions for word in caption)
    pairs = [ngrams(caption, 2) for caption in captions]
    n_pairs = max(1, sum(map(len, pairs)))
    whole = Counter(tuple(caption) for caption in captions)
    return Diversity(
        vocabulary=len(words),
        mean_length=words.total() / len(captions),
        distinct_1=len(words) / max(1, words.total()),
        distinct_2=len({pair for own in pairs for pair in own}) / n_pairs,
        repetition_rate=sum(len(own) - len(set(own)) for own in pairs) / n_pairs,
        commonest_share=max(whole.values()) / len(captions),
        distinct_captions=len(whole) / len(captions),
        self_bleu=self_bleu(captions),
    )


def self_bleu(captions: Sequence[Tokens]) -> float:
    """Mean BLEU-4 of each caption with all others as its references, exactly; 0 for one caption.

    Only each n-gram's two largest counts are kept, so that time grows with the number of words
    and not with the square of the captions.
    """
    if len(captions) < 2:
        return 0.0
    most: dict[Ngram, tuple[int, int, int]] = {}  # n-gram -> largest count, whose, next largest
    for i, caption in enumerate(captions):
        for ngram, count in ngram_counts(caption).items():
            first, owner, second = most.get(ngram, (0, -1, 0))
            most[ngram] = (count, i, first) if count > first else (first, owner, max(second, count))
    lengths = sorted(map(len, captions))
    rows = []
    for i, caption in enumerate(captions):
        allowed = Counter(
            {
                ngram: second if owner == i else first
                for ngram in ngram_counts(caption)
                for first, owner, second in (most[ngram],)
            }
        )
        rows.append(statistics_against(caption, allowed, _closest_other(lengths, len(caption))))
    return float(bleu(np.stack(rows))[:, -1].mean())


def _closest_other(lengths: Sequence[int], own: int) -> int:
    """The length closest to one's own among the others; the shorter of two equally close.

    Args:
        lengths: of all captions, one's own included, sorted.
        own: one's own.
    """
    at = bisect_left(lengths, own)
    others = [*lengths[max(0, at - 1) : at], *lengths[at + 1 : at + 2]]
    return min((abs(length - own), length) for length in others)[1]
