"""One direction of retrieval as a race: how many candidates come in before a query's positive.

Blocks of float32 scores settle what is far from the positive's score; what lies within the
error of float32 is scored again in float64 and settled exactly.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval_engine.metrics.pair_scores import Ints, Scores


class Ties(StrEnum):
    """What happens between a positive and another candidate of exactly the same score.

    `LOWER_INDEX` puts the lower index first: a collapsed model, whose scores are all equal, gets
    chance level. `PESSIMISTIC` puts every equal candidate before the positive, `OPTIMISTIC` none:
    the two bounds. Code that counts `score > positive` reports the optimistic one, with which a
    collapsed model scores 100 %.

    Examples:
        >>> import numpy as np
        >>> from retrieval_engine.metrics.recall import recall
        >>> collapsed, owner = np.ones((5, 1), np.float32), np.arange(5)
        >>> for ties in Ties:
        ...     report = recall(collapsed, collapsed, owner, ks=(1,), ties=ties)
        ...     print(ties, report.text_to_image.recall[1])
        lower-index 20.0
        pessimistic 0.0
        optimistic 100.0
    """

    LOWER_INDEX = "lower-index"
    PESSIMISTIC = "pessimistic"
    OPTIMISTIC = "optimistic"


@dataclass(slots=True, kw_only=True)
class Race:
    """One direction: each query's best positive, and how many candidates have beaten it so far.

    Attributes:
        score: (queries,) of the best positive; +inf, which nothing beats, where there is none.
        index: (queries,) the best positive's index among the candidates.
        beaten_by: (queries,) candidates found in front of it.
        tied: (queries,) True where a wrong candidate has exactly its score.
        content: of each candidate, equal numbers for equal ones, which do not beat each other;
            None when all differ.
        ties: who is in front at equal scores.
    """

    score: Scores
    index: Ints
    beaten_by: Ints
    tied: NDArray[np.bool_]
    content: Ints | None
    ties: Ties

    @classmethod
    def of(cls, queries: int, content: Ints | None, ties: Ties) -> "Race":
        """A race that nobody has begun."""
        return cls(
            score=np.full(queries, np.inf),
            index=np.zeros(queries, np.int64),
            beaten_by=np.zeros(queries, np.int64),
            tied=np.zeros(queries, np.bool_),
            content=content,
            ties=ties,
        )

    def screen(self, scores: Tensor, start: int, margin: float) -> tuple[Ints, Ints]:
        """Count the candidates that surely win; give back those too close to tell in float32.

        Args:
            scores: (queries, candidates) float32 block.
            start: index of the block's first query in the race.
            margin: how far a float32 score may be from the exact one.

        Returns:
            The close pairs' rows and columns in the block.
        """
        reach = self.score[start : start + len(scores)]
        low, high = (
            torch.from_numpy(
                np.nextafter((reach + side * margin).astype(np.float32), side * np.inf)
            )
            .float()
            .to(scores.device)
            for side in (np.float32(-1), np.float32(1))
        )
        # Most rows of a good model hold nothing near the positive: one maximum settles them.
        hot = (scores.amax(1) >= low).nonzero()[:, 0]
        rows = scores[hot]
        wins = rows > high[hot, None]
        row, column = (wins ^ (rows >= low[hot, None])).nonzero(as_tuple=True)
        hot_here = hot.cpu().numpy()
        self.beaten_by[start + hot_here] += wins.sum(1).cpu().numpy()
        return hot_here[row.cpu().numpy()], column.cpu().numpy()

    def settle(self, query: Ints, candidate: Ints, score: Scores) -> None:
        """Count those of the (query, candidate) pairs whose exact score wins."""
        if self.content is not None:
            other = self.content[candidate] != self.content[self.index[query]]
            query, candidate, score = query[other], candidate[other], score[other]
        wins = score > self.score[query]
        equal = score == self.score[query]
        self.tied[query[equal]] = True
        if self.ties is Ties.LOWER_INDEX:
            equal &= candidate < self.index[query]
        elif self.ties is Ties.OPTIMISTIC:
            equal[:] = False
        np.add.at(self.beaten_by, query[wins | equal], 1)
