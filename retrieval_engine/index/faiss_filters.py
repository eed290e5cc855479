"""Searches of a faiss index among some of its rows: parameters of one call, and how wide it goes.

Under a filter that leaves a share of the rows, a search that looks at as many places as without
one finds fewer answers. So it goes 1 / share as wide. Of an inverted file the same number of rows
is compared then, for those that are left out cost a bit test; of few rows it looks through all
lists, which is exact. A graph has to walk through what is left out, so that below a share every
allowed row is compared instead.
"""

import math
from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval_engine.index.grouping import Allowed, Items, Scores

# Rows that a graph compares for each of its efSearch places, measured (benchmarks/LOG.md).
_COMPARED_A_PLACE = 10
_NO_PARAMETERS = "param"  # stands in what faiss says of kinds that take no selector


class Selector:
    """Rows that may be answers, as faiss takes them; faiss keeps no hold of the bits itself.

    Args:
        allowed: (rows,).

    Attributes:
        share: of the rows, in (0, 1].
        faiss: the selector.
    """

    def __init__(self, allowed: Allowed) -> None:
        self.share = max(1, int(np.count_nonzero(allowed))) / max(1, len(allowed))
        self._allowed = allowed
        self._bits = np.packbits(allowed, bitorder="little")
        self.faiss = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(self._bits))

    def search(
        self, index: Any, queries: NDArray[np.float32], fetch: int, effort: Mapping[str, int]
    ) -> tuple[Scores, Items]:
        """The best of these rows for each query, as `RowSearch.search_rows`."""
        if storage := _storage_if_quicker(index, self.share):
            index = storage
        try:
            return index.search(queries, fetch, params=_parameters(index, fetch, effort, self))  # type: ignore[no-any-return]
        except RuntimeError as error:
            if _NO_PARAMETERS not in str(error):
                raise
        return self._sifted(index, queries, fetch)

    def _sifted(self, index: Any, queries: NDArray[np.float32], fetch: int) -> tuple[Scores, Items]:
        """For kinds that take no selector (flat product quantisers): of more answers, those allowed."""
        n = int(2 * fetch / self.share) + 64
        while True:
            n = min(n, index.ntotal)
            scores, rows = index.search(queries, n)
            there = (rows >= 0) & self._allowed[rows]
            if n == index.ntotal or (there.sum(axis=1) >= fetch).all():
                order = np.argsort(~there, axis=1, kind="stable")[:, :fetch]
                there = np.take_along_axis(there, order, axis=1)
                return (
                    np.where(there, np.take_along_axis(scores, order, axis=1), -np.inf),
                    np.where(there, np.take_along_axis(rows, order, axis=1), -1),
                )
            n *= 4


def parameters(index: Any, fetch: int, effort: Mapping[str, int]) -> Any:
    """Parameters of a search among all rows; the index keeps its own setting for other threads."""
    return _parameters(index, fetch, effort, None)


def _parameters(index: Any, fetch: int, effort: Mapping[str, int], only: Selector | None) -> Any:
    index = faiss.downcast_index(index)
    share = only.share if only else 1.0
    sel = {"sel": only.faiss} if only else {}
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(index.index, fetch, effort, only)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = _parameters(index.base_index, fetch, effort, only)
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        nprobe = math.ceil(effort.get("nprobe", index.nprobe) / share)
        return faiss.SearchParametersIVF(nprobe=min(nprobe, index.nlist), **sel)
    if isinstance(index, faiss.IndexHNSW):
        wanted = max(index.hnsw.efSearch, fetch) / share
        return faiss.SearchParametersHNSW(efSearch=min(index.ntotal, int(wanted) + 1), **sel)
    return faiss.SearchParameters(**sel)


def _storage_if_quicker(index: Any, share: float) -> Any:
    """The rows of a graph, where comparing each allowed one takes less time than walking; else None."""
    graph = faiss.downcast_index(index)
    if not isinstance(graph, faiss.IndexHNSW):
        return None
    if share * graph.ntotal > _COMPARED_A_PLACE * graph.hnsw.efSearch / share:
        return None
    return faiss.downcast_index(graph.storage)
