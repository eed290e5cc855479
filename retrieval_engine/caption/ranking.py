"""Orders captions of an image by what the cross-encoder says of the pair, beside their likelihood.

The judge is a retrieval checkpoint with an ITM head (the captioner's own directory, where it has
one); it sees the image and the caption, never the reference captions.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.models import Encoder

MATCH_WEIGHT = 0.15
"""Of the log odds of a match, beside a caption's log-probability over its length. With `vlre-photo` and
five beams of the Flickr8k dev split .05 to .2 gave CIDEr .535 to .542, the likelihood alone .518
(benchmarks/LOG.md, 2026-11-27)."""
LENGTH_WEIGHT = 0.1
"""The length is taken to the power of 1.1: over its length alone a short sentence is the likelier. At the
same CIDEr captions have 2 to 3 % more different words (the same place)."""
_USUAL = 11  # words and the end: there the two weights are as they would be without the other
_CERTAIN = 1e-7  # a probability this near to 0 or 1 is as good as there


def combined(
    captions: Sequence[str], scores: Sequence[float], matches: Sequence[float]
) -> list[float]:
    """What captions of an image are ordered by: the greater the better.

    Args:
        captions: (n,) sentences.
        scores: (n,) log-probability of each over its length.
        matches: (n,) probability that each matches, from a `Judge`.
    """
    lengths = ((len(caption.split()) + 1) / _USUAL for caption in captions)
    odds = (np.clip(match, _CERTAIN, 1 - _CERTAIN) for match in matches)
    return [
        score / length**LENGTH_WEIGHT + MATCH_WEIGHT * float(np.log(p / (1 - p)))
        for score, length, p in zip(scores, lengths, odds, strict=True)
    ]


class Judge:
    """Match probabilities of captions with their images.

    Args:
        encoder: a retrieval encoder.

    Raises:
        UsageError: it has no matching head.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._matcher = encoder.matcher()

    def probabilities(
        self, states: NDArray[np.floating], captions: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """How likely each caption matches its image: softmax of the ITM head's two logits.

        Args:
            states: (n, t, w) vision states of the judge's own tower.
            captions: of each of the n images, any number.

        Returns:
            For each image one number in [0, 1] per caption.
        """
        pairs: list[tuple[int, int]] = []
        texts: list[str] = []
        for number, sentences in enumerate(captions):
            for sentence in sentences:
                pairs.append((number, len(texts)))
                texts.append(sentence)
        if not pairs:
            return [[] for _ in captions]
        found = self._matcher.score_pairs(
            lambda numbers: states[numbers],
            texts,
            np.array(pairs, dtype=np.int64),
            as_probability=True,
        ).tolist()
        counts = np.cumsum([0, *(len(sentences) for sentences in captions)])
        return [found[a:b] for a, b in pairwise(counts)]
