"""Exact top-k with plain NumPy, block by block: the oracle of every index, and the fallback."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import ShapeError
from retrieval_engine.index.grouping import Allowed, Items, Scores, check_queries
from retrieval_engine.index.halves import in_pieces
from retrieval_engine.metrics.candidates import Candidates, reaching
from retrieval_engine.metrics.pair_scores import float32_error, rounded_scores

# (first item, (b, q, d) vectors), in order of item number.
Block = tuple[int, NDArray[np.floating]]
Keys = NDArray[np.uint64]
Find = Callable[[NDArray[np.floating], int, Scores], Items]

_BLOCK_BYTES = 1 << 26
_PRODUCTS = 1 << 25  # of float32 at a time
_FEW = 4  # queries


class ExactIndex:
    """Compares a query with every vector.

    A score is summed in float64 and rounded to float32, so it depends neither on what else is asked
    nor on the device. Products of float32 find what may be among the best.

    Trap: it reads all vectors at each search. From a store that is one pass over the shards, some
    gigabytes a second from the page cache; ask many questions in one call.

    Args:
        vectors: (n, d), or (n, q, d) for q vectors an item; float16 or float32.
    """

    def __init__(self, vectors: NDArray[np.floating]) -> None:
        if vectors.ndim not in (2, 3):
            raise ShapeError(f"vectors have shape {vectors.shape}; (n, d) or (n, q, d) is needed")
        if vectors.ndim == 2:
            vectors = vectors[:, None, :]

        def blocks(size: int) -> Iterator[Block]:
            for start in range(0, len(vectors), size):
                yield start, vectors[start : start + size]

        self._blocks: Callable[[int], Iterator[Block]] = blocks
        self._items = len(vectors)
        self._shape: tuple[int, int] = (vectors.shape[1], vectors.shape[2])
        self._device = "cpu"

    @classmethod
    def streaming(
        cls,
        blocks: Callable[[int], Iterator[Block]],
        items: int,
        shape: tuple[int, ...],
        device: str = "cpu",
    ) -> "ExactIndex":
        """An index that keeps nothing: each search asks for the blocks anew.

        Args:
            blocks: gives (first item, (b, q, d) vectors) for a number of items a block.
            items: number of items in all blocks.
            shape: (q, d) of one item.
            device: where the products are made; `cpu`, or as torch names a CUDA device.
        """
        index = cls.__new__(cls)
        index._blocks = blocks
        index._items = items
        index._shape = (shape[0], shape[1])
        index._device = device
        return index

    @property
    def items(self) -> int:
        """Number of items."""
        return self._items

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._shape[1]

    @np.errstate(over="ignore", invalid="ignore")  # what is NaN is told
    def search(
        self, queries: NDArray[np.float32], k: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Items]:
        """As `Index.search`; memory is bounded by the queries times one block.

        Raises:
            UsageError: k is below 1.
            ShapeError: the queries or the vectors are not what they must be.
        """
        queries = check_queries(queries, self.dim, k)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        items = np.full((len(queries), k), -1, dtype=np.int64)
        if not len(queries):
            return scores, items
        best = np.empty((len(queries), 0), dtype=np.uint64)
        candidates = _candidates(queries, self._device)
        for start, block in self._blocks(self._block_items()):
            numbers = np.arange(start, start + len(block))
            if allowed is not None:
                numbers = numbers[allowed[numbers]]
                block = block[numbers - start]
            if not len(numbers):
                continue
            floor = np.full(len(queries), -np.inf, np.float32)
            if best.shape[1] == k:
                floor = _from_keys(best[:, -1:])[0][:, 0]
            query, column = candidates(block, k, floor)
            found = rounded_scores(block, queries[:, None], column, query)
            if np.isnan(found).any():
                raise ShapeError(f"a vector among items {start} to {numbers[-1]} is NaN")
            kept = found >= floor[query]
            keys = _ordered_keys(found[kept], numbers[column[kept]])
            best = _merged(best, query[kept], keys, k)
        n = best.shape[1]
        scores[:, :n], items[:, :n] = _from_keys(best)
        return scores, items

    def _block_items(self) -> int:
        vectors, dim = self._shape
        return max(1, _BLOCK_BYTES // (4 * vectors * dim))


def _candidates(queries: NDArray[np.float32], device: str) -> Find:
    """What finds a block's (2, n) query and item that may be among the k best, given each one's k-th."""
    if device != "cpu":
        return Candidates(queries, device)
    lengths = np.linalg.norm(queries, axis=1)

    def candidates(block: NDArray[np.floating], k: int, floor: Scores) -> Items:
        b, v, d = block.shape
        found, some = [], max(1, _PRODUCTS // (b * v))
        for at in range(0, len(queries), some):
            part = slice(at, at + some)
            scores, longest = _products(queries[part], block.reshape(b * v, d))
            scores = scores if v == 1 else scores.reshape(-1, b, v).max(axis=2)
            slack = 2 * float32_error(d, lengths[part] * longest)
            places = reaching(scores, k, floor[part], slack)
            found.append(places + np.array([[at], [0]]))
        return np.concatenate(found, axis=1)

    return candidates


def _products(
    queries: NDArray[np.float32], rows: NDArray[np.floating]
) -> tuple[Scores, np.float32]:
    """(q, n) inner products, whose last digits depend on what else is asked, and the longest row.

    Few are made in this thread. A product by a matrix OpenBLAS shares out, and for one query waking
    its threads takes longer than the work, on busy cores fifty times.
    """
    scores = np.empty((len(queries), len(rows)), np.float32)
    longest = np.float32(0)
    for first, part, squared in in_pieces(rows):
        longest = np.maximum(longest, np.sqrt(squared))
        out = scores[:, first : first + len(part)]
        if len(queries) < _FEW:
            np.vecdot(queries[:, None], part, out=out)
        else:
            np.matmul(queries, part.T, out=out)
    return scores, longest


def _merged(best: Keys, query: Items, keys: Keys, k: int) -> Keys:
    """The k best so far, in order, after another block.

    Args:
        best: (q, at most k) keys, descending.
        query: (n,) whose candidates they are.
        keys: (n,) of the block's candidates.
        k: how many are wanted.
    """
    n = len(best)
    keys = np.concatenate([best.ravel(), keys])
    query = np.concatenate([np.repeat(np.arange(n), best.shape[1]), query])
    order = np.lexsort((~keys, query))
    counts = np.bincount(query, minlength=n)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return keys[order[place < k]].reshape(n, -1)  # as many of each query: min(k, seen so far)


def _ordered_keys(scores: Scores, items: Items) -> Keys:
    """One integer per (score, item): larger is better, and an equal score is won by a lower item.

    The upper half is the float's bits made monotonic, the lower half counts items downwards. No
    two keys are equal, so sorting them needs no tie rule of its own.
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # + 0 makes -0.0 the same as 0.0
    negative = bits >> 31 != 0
    monotonic = np.where(negative, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    keys: Keys = (monotonic << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - items.astype(np.uint64))
    return keys


def _from_keys(keys: Keys) -> tuple[Scores, Items]:
    monotonic = (keys >> np.uint64(32)).astype(np.uint32)
    positive = monotonic >> 31 != 0
    bits = np.where(positive, monotonic & np.uint32((1 << 31) - 1), ~monotonic).astype(np.uint32)
    items = (np.uint64(0xFFFFFFFF) - (keys & np.uint64(0xFFFFFFFF))).astype(np.int64)
    return bits.view(np.float32), items
