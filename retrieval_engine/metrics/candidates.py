"""What of a block of scores may be among the best: the screen of exact search, here and on CUDA."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.metrics.pair_scores import float32_error, float32_products

Scores = NDArray[np.float32]
Items = NDArray[np.int64]
_CROWD = 16  # times k candidates of a query, beyond which the block's own k-th place is sought


def reaching(scores: Scores, k: int, floor: Scores, slack: Scores | float = 0.0) -> Items:
    """What reaches a floor or the block's own k-th place, less a slack.

    Only that is looked at closely: sorting or partitioning whole blocks would take longer than the
    inner products.

    Args:
        scores: (q, b). NaN is below nothing.
        k: how many are wanted of each row.
        floor: (q,) what is at the k-th place so far.
        slack: (q,) how far below it a score may be.

    Returns:
        (2, n) rows and columns, in order.
    """
    size = scores.shape[1]
    kept = ~(scores < (floor - slack)[:, None])
    if size > k and np.count_nonzero(kept) > _CROWD * k * len(scores):
        own = np.partition(scores, size - k, axis=1)[:, size - k]
        kept = ~(scores < (np.maximum(floor, own) - slack)[:, None])
    # `nonzero` of a matrix takes eight times as long.
    return np.array(np.divmod(np.flatnonzero(kept), size))


class Candidates:
    """Finds on a CUDA device, block by block, what may be among the best; places alone come back.

    Products are of float32, never of TF32, whose ten bits would let far more come near the best.

    Args:
        queries: (q, d) float32.
        device: as torch names it.
    """

    def __init__(self, queries: NDArray[np.float32], device: str) -> None:
        import torch

        self._queries = torch.from_numpy(queries).to(device)
        self._lengths = np.linalg.norm(queries, axis=1)

    def __call__(self, block: NDArray[np.floating], k: int, floor: Scores) -> Items:
        """What may reach the k-th place of a block and of all so far.

        Args:
            block: (b, v, d) vectors.
            k: how many are wanted for each query.
            floor: (q,) float32, what is at the k-th place so far; -inf where there are not k yet.

        Returns:
            (2, n) query, and item of the block.
        """
        import torch

        b, v, d = block.shape
        flat: Any = torch.from_numpy(np.ascontiguousarray(block)).to(self._queries.device)
        flat = flat.reshape(b * v, d).float()
        with float32_products("highest"):
            scores = self._queries @ flat.T
        scores = scores.reshape(len(scores), b, v).amax(dim=2)
        longest = float(torch.linalg.vector_norm(flat, dim=1).max())
        error = torch.from_numpy(float32_error(d, self._lengths * np.float32(longest)))
        own = scores.topk(min(k, b), dim=1).values[:, -1:]
        least = torch.maximum(own, torch.from_numpy(floor).to(own.device)[:, None])
        least -= (
            2 * error.to(own.device)[:, None]
        )  # of the product, and of what is at the k-th place
        # NaN is below nothing: it comes back with the best, and the caller sees it.
        places: Items = (~(scores < least)).nonzero().T.cpu().numpy()
        return places
