"""The contracts of metrics, kept by those that ship."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.metrics.bleu import bleu, bleu_statistics
from retrieval_engine.metrics.cider import cider_d
from retrieval_engine.metrics.ngrams import Tokens
from retrieval_engine.metrics.recall import recall_at_k
from retrieval_engine.metrics.rouge import rouge_l
from retrieval_engine.testing import CaptionMetricContract, RankMetricContract


class TestRecallAt1(RankMetricContract):
    def score(self, ranks: NDArray[np.int64]) -> float:
        return recall_at_k(ranks, 1)


class TestRecallAt10(RankMetricContract):
    def score(self, ranks: NDArray[np.int64]) -> float:
        return recall_at_k(ranks, 10)


class TestBleu4(CaptionMetricContract):
    def score(self, caption: Tokens, references: Sequence[Tokens]) -> float:
        return float(bleu(bleu_statistics(caption, references))[3])


class TestRougeL(CaptionMetricContract):
    def score(self, caption: Tokens, references: Sequence[Tokens]) -> float:
        return rouge_l(caption, references)


class TestCiderD(CaptionMetricContract):
    best = 10.0

    def score(self, caption: Tokens, references: Sequence[Tokens]) -> float:
        # The other images tell which words are rare.
        others = [["some", "words"], ["of", "another", "image"]]
        found = cider_d([caption, *others], [references, *([o] for o in others)])
        return float(found[0])
