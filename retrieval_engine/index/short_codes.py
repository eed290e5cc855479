"""A search with a filter among rows of which an index has short codes, and the rows themselves.

faiss's `IndexRefine` over 4-bit codes takes no selector. So its two steps are done here: the codes
propose candidates, of which those that are allowed are compared whole. Where few rows are allowed
no code is read and each of them is compared, which is exact.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.index.grouping import Items, Scores

_FEW = 7  # times the candidates: comparing so many rows takes about the time of a scan
_BLOCK = 1024  # rows decoded at once, which stay in the cache


def search_allowed(
    index: Any,
    queries: NDArray[np.float32],
    fetch: int,
    allowed: NDArray[np.bool_],
    rows: Items,
    wider: float,
    how: Any = None,
) -> tuple[Scores, Items]:
    """The best of the allowed rows for each query, as `RowSearch.search_rows`.

    Args:
        index: an `IndexRefine` of faiss.
        queries: (q, dim).
        fetch: how many rows.
        allowed: (rows,) which may be answers.
        rows: the numbers of those, at least one.
        wider: how many times more candidates than the root of 1 / share; at most 1 / share.
        how: parameters of the search among the codes, as faiss takes them; None for its own.
    """
    share = len(rows) / len(allowed)
    wanted = fetch * index.k_factor
    scores = np.full((len(queries), fetch), -np.inf, np.float32)
    found = np.full((len(queries), fetch), -1, np.int64)
    pending = np.arange(len(queries))
    n = int(wanted * min(wider * share**-0.5, 1 / share))
    while len(pending):
        if len(rows) <= _FEW * wanted or n >= index.ntotal:
            candidates = [rows] * len(pending)
        else:
            _, proposed = index.base_index.search(queries[pending], n, params=how)
            candidates = [some[(some >= 0) & allowed[some]] for some in proposed]
        for number, some in zip(pending, candidates, strict=True):
            products = _products(index.refine_index, queries[number], some)
            best = np.lexsort((some, -products))[:fetch]
            scores[number, : len(best)], found[number, : len(best)] = products[best], some[best]
        enough = min(fetch, len(rows))
        short = np.array([len(some) < enough for some in candidates])
        pending, n = pending[short], 4 * n
    return scores, found


def _products(stored: Any, query: NDArray[np.float32], rows: Items) -> Scores:
    """Inner products of a query with some of the rows of a flat index."""
    codes = _codes(stored)
    parts = [
        stored.sa_decode(codes[rows[at : at + _BLOCK]]) @ query
        for at in range(0, len(rows), _BLOCK)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _codes(stored: Any) -> NDArray[np.uint8]:
    """(rows, bytes) of an index's memory, or of the file that is mapped there; nothing is copied."""
    import faiss

    flat: Any = faiss.downcast_index(stored)
    size = flat.ntotal * flat.code_size
    seen: NDArray[np.uint8] = faiss.rev_swig_ptr(flat.codes.data(), size)
    return seen.reshape(flat.ntotal, flat.code_size)
