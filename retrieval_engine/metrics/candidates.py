"""Products of exact search on a CUDA device, of which only the best of a block come back."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Items = NDArray[np.int64]


class Candidates:
    """Finds, block by block, what may be among the best.

    Products are of float32, never of TF32, whose ten bits would order near scores otherwise.

    Args:
        queries: (q, d) float32.
        device: as torch names it.
    """

    def __init__(self, queries: NDArray[np.float32], device: str) -> None:
        import torch

        self._queries = torch.from_numpy(queries).to(device)

    def __call__(
        self, block: NDArray[np.floating], k: int, floor: Scores
    ) -> tuple[Items, Items, Scores]:
        """The scores that reach the k-th of a block and of all so far.

        Args:
            block: (b, v, d) vectors.
            k: how many are wanted for each query.
            floor: (q,) float32, what is at the k-th place so far; -inf where there are not k yet.

        Returns:
            (n,) query, (n,) item of the block, and (n,) score.
        """
        import torch

        from retrieval_engine.metrics.pair_scores import float32_products

        b, v, d = block.shape
        flat: Any = torch.from_numpy(np.ascontiguousarray(block)).to(self._queries.device)
        with float32_products("highest"):
            scores = self._queries @ flat.reshape(b * v, d).float().T
        scores = scores.reshape(len(scores), b, v).amax(dim=2)
        own = scores.topk(min(k, b), dim=1).values[:, -1:]
        least = torch.maximum(own, torch.from_numpy(floor).to(own.device)[:, None])
        # NaN is below nothing: it comes back with the best, and the caller sees it.
        query, item = (~(scores < least)).nonzero(as_tuple=True)
        found = (query, item, scores[query, item])
        query, item, best = (each.cpu().numpy() for each in found)
        return query, item, best
