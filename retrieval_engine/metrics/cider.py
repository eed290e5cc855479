"""CIDEr-D: Vedantam et al. (CVPR 2015), section 3, as the COCO caption tools compute it.

The COCO tools call it CIDEr. 1.0 here is 100 in papers. How rare an n-gram is comes from the
references of the captions that are scored, so a figure belongs to its set of images: scores of two
subsets do not average to that of their union, and one image alone scores 0.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.metrics.ngrams import Ngram, Tokens, ngram_counts

ORDERS = 4
SIGMA = 6.0


@dataclass(frozen=True, slots=True)
class _Weighted:
    """A caption as n-gram weights, one mapping and one norm for each n; length in bigrams."""

    weights: tuple[Mapping[Ngram, float], ...]
    norms: tuple[float, ...]
    length: int


def cider_d(
    captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> NDArray[np.float64]:
    """CIDEr-D of each caption; a corpus's score is the mean.

    Args:
        captions: tokens, one caption an image.
        references: tokens of each image's references, at least one.

    Returns:
        (n,) float64, at least 0.

    Examples:
        A word that stands in every image's references, such as "dog" here, is worth nothing:

        >>> references = [["a brown dog runs".split()], ["a black dog sleeps".split()]]
        >>> cider_d(["a brown dog".split(), "a dog".split()], references).round(2)
        array([5.5, 0. ])
    """
    scorer = CiderD(references)
    return np.array([scorer.scores([c], image)[0] for image, c in enumerate(captions)])


class CiderD:
    """CIDEr-D of any captions against the references of one set of images.

    Args:
        references: tokens of each image's references, at least one.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        self._references = references
        documents: Counter[Ngram] = Counter()
        for image in references:
            documents.update(set().union(*(ngram_counts(tokens) for tokens in image)))
        self._rarity = _Rarity(documents, len(references))

    def scores(self, captions: Sequence[Tokens], image: int) -> list[float]:
        """Scores of some captions of an image, given by its place among the references."""
        weigh = self._rarity.weigh
        told = [weigh(ngram_counts(tokens)) for tokens in self._references[image]]
        return [_similarity(weigh(ngram_counts(c)), told) for c in captions]


@dataclass(frozen=True, slots=True)
class _Rarity:
    """In how many images' references each n-gram occurs, of how many images."""

    documents: Counter[Ngram]
    images: int

    def weigh(self, counts: Counter[Ngram]) -> _Weighted:
        """tf-idf weights of a caption; the tools' tf is the plain count."""
        weights: tuple[dict[Ngram, float], ...] = tuple({} for _ in range(ORDERS))
        for ngram, count in counts.items():
            idf = math.log(self.images) - math.log(max(1, self.documents[ngram]))
            weights[len(ngram) - 1][ngram] = count * idf
        norms = tuple(math.sqrt(sum(w * w for w in side.values())) for side in weights)
        # The tools add up the counts of bigrams, not of words, and call that the length.
        length = sum(count for ngram, count in counts.items() if len(ngram) == 2)
        return _Weighted(weights, norms, length)


def _similarity(caption: _Weighted, references: Sequence[_Weighted]) -> float:
    """Ten times the mean over n and references of the clipped cosine, damped by length."""
    total = 0.0
    for reference in references:
        damping = math.exp(-((caption.length - reference.length) ** 2) / (2 * SIGMA**2))
        for n in range(ORDERS):
            theirs = reference.weights[n]
            dot = sum(
                min(weight, theirs[ngram]) * theirs[ngram]
                for ngram, weight in caption.weights[n].items()
                if ngram in theirs
            )
            norm = caption.norms[n] * reference.norms[n]
            total += damping * (dot / norm if norm else dot)
    return 10 * total / ORDERS / len(references)
