"""What every metric must do: stay in its bounds, and never reward the worse answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval_engine.errors import VlreError
from retrieval_engine.metrics.ngrams import Tokens

Ranks = st.lists(st.integers(0, 50), min_size=1, max_size=30)
# Each subclass runs the examples by itself: nothing is shared between them.
_EXAMPLES = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)

CAPTIONS: Sequence[Tokens] = [
    text.split()
    for text in (
        "a brown dog runs over the green grass",
        "two men sit in a small boat on the water",
        "a red car stands in the street at night",
    )
]


class RankMetricContract(ABC):
    """Subclass it with `score`: one figure of the ranks of all queries, larger is better."""

    @abstractmethod
    def score(self, ranks: NDArray[np.int64]) -> float:
        """The figure of (q,) 0-based ranks of each query's first relevant item, in [0, 1]."""

    def test_all_first_is_one(self) -> None:
        assert self.score(np.zeros(7, np.int64)) == pytest.approx(1)

    def test_far_behind_is_nearly_nothing(self) -> None:
        assert 0 <= self.score(np.full(7, 10**6)) < 1e-3

    @_EXAMPLES
    @given(ranks=Ranks)
    def test_it_is_in_its_bounds(self, ranks: list[int]) -> None:
        assert 0 <= self.score(np.array(ranks)) <= 1 + 1e-12

    @_EXAMPLES
    @given(ranks=Ranks, data=st.data())
    def test_the_order_of_queries_does_not_matter(
        self, ranks: list[int], data: st.DataObject
    ) -> None:
        mixed = data.draw(st.permutations(ranks))
        assert self.score(np.array(mixed)) == pytest.approx(self.score(np.array(ranks)))

    @_EXAMPLES
    @given(ranks=Ranks, data=st.data())
    def test_a_worse_rank_is_never_better(self, ranks: list[int], data: st.DataObject) -> None:
        worse = list(ranks)
        worse[data.draw(st.integers(0, len(ranks) - 1))] += data.draw(st.integers(1, 20))
        assert self.score(np.array(worse)) <= self.score(np.array(ranks)) + 1e-12

    def test_no_queries_have_no_figure(self) -> None:
        with pytest.raises((VlreError, ValueError)):
            self.score(np.empty(0, np.int64))


class CaptionMetricContract(ABC):
    """Subclass it with `score`: one figure of a caption, larger is better."""

    # The figure of a caption that is its reference.
    best = 1.0

    @abstractmethod
    def score(self, caption: Tokens, references: Sequence[Tokens]) -> float:
        """The figure of a caption's words against those of its references."""

    @pytest.mark.parametrize("caption", CAPTIONS, ids=" ".join)
    def test_a_reference_itself_is_best(self, caption: Tokens) -> None:
        assert self.score(caption, [caption]) == pytest.approx(self.best, rel=1e-6)
        assert self.score(caption, list(CAPTIONS)) <= self.best * (1 + 1e-6)

    def test_nothing_in_common_is_nothing(self) -> None:
        assert self.score(["xylophone", "zither"], list(CAPTIONS)) == pytest.approx(0, abs=1e-3)
        assert self.score([], list(CAPTIONS)) == pytest.approx(0, abs=1e-3)

    def test_the_order_of_references_does_not_matter(self) -> None:
        caption = ["a", "brown", "dog", "stands", "in", "the", "street"]
        forwards = self.score(caption, list(CAPTIONS))
        assert 0 < forwards < self.best
        assert self.score(caption, list(CAPTIONS)[::-1]) == pytest.approx(forwards)

    def test_more_right_words_are_better(self) -> None:
        whole = CAPTIONS[0]
        scores = [self.score(whole[:n], [whole]) for n in (5, 6, 7, 8)]
        assert scores == sorted(scores)
        assert scores[0] < scores[-1]
