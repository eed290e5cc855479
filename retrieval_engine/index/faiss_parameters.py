"""What faiss calls its settings: those of an index, how it is trained, and those of one search."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import MissingExtra
from retrieval_engine.index.grouping import Allowed, Items, Scores
from retrieval_engine.index.short_codes import search_allowed

REFINED = "k_factor_rf"
"""How many times the rows wanted are taken from short codes, to be compared whole."""
# Settings that trade time for recall, and where trying them starts.
EFFORTS = {"nprobe": 1, "efSearch": 16, REFINED: 4}
WIDENING = "widening"
"""How long a search among lists may take under a filter, in hundredths of one without."""
# The last: through all lists, but where half the rows are left.
WIDENINGS = (135, 160, 200, 400, 10_000)
# Rows that a graph compares for each of its efSearch places, measured (benchmarks/LOG.md).
_COMPARED_A_PLACE = 10
_NO_PARAMETERS = "param"  # stands in what faiss says of kinds that take no selector


def import_faiss() -> Any:
    """The library.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingExtra("faiss", "cpu") from error
    return faiss


def set_parameters(index: Any, settings: Mapping[str, int]) -> None:
    """Put settings of an index in force, for all threads."""
    for name, value in settings.items():
        if name == WIDENING:
            continue  # ours, not faiss's
        import_faiss().ParameterSpace().set_index_parameter(index, name, value)


def part_of(effort: Mapping[str, int], share: float) -> Mapping[str, int]:
    """A setting as it is for a part with a share of the rows.

    Fewer rows hide the best among their codes; yet all of the best may be in a small part.
    """
    if REFINED not in effort:
        return effort
    return {**effort, REFINED: max(EFFORTS[REFINED], math.ceil(effort[REFINED] * share**0.5))}


def effort_names(index: Any) -> list[str]:
    """The settings that trade time for recall, whatever wraps the index."""
    space = import_faiss().ParameterSpace()
    space.initialize(index)
    ranges = space.parameter_ranges
    known = [ranges.at(i).name for i in range(ranges.size())]
    return [name for name in EFFORTS if name in known]


def list_count(index: Any) -> int:
    """Lists of an inverted file."""
    return int(import_faiss().extract_index_ivf(index).nlist)


def keep_half_precision_whole(index: Any) -> None:
    """Store float16 rows as they are: the rest of a row and its centroid would be rounded anew."""
    faiss = import_faiss()
    ivf = faiss.downcast_index(faiss.try_extract_index_ivf(index))
    if isinstance(ivf, faiss.IndexIVFScalarQuantizer):
        ivf.by_residual = ivf.by_residual and ivf.sq.qtype != faiss.ScalarQuantizer.QT_fp16


def rotate_only(index: Any, sample: NDArray[np.float32]) -> None:
    """Train a PCA before the rest, and have it subtract no mean.

    faiss moves queries by the mean of the rows as well as the rows: inner products with moved
    queries come in another order. Its directions are dealt out so that every part of a product
    quantiser behind it gets an equal share of what rows vary by (Ge et al., Optimized Product
    Quantization, CVPR 2013, section 4.2): half the error of a random rotation.
    """
    faiss = import_faiss()
    while isinstance(index := faiss.downcast_index(index), faiss.IndexRefine):
        index = index.base_index
    if not isinstance(index, faiss.IndexPreTransform):
        return
    first = faiss.downcast_VectorTransform(index.chain.at(0))
    if isinstance(first, faiss.PCAMatrix):
        coded = faiss.downcast_index(index.index)
        pq = getattr(coded, "pq", None)
        if pq is not None and not first.random_rotation and first.d_out % pq.M == 0:
            first.balanced_bins = pq.M
        first.train(sample)
        faiss.copy_array_to_vector(np.zeros(first.d_out, np.float32), first.b)


class Selector:
    """Rows that may be answers, as faiss takes them; faiss keeps no hold of the bits itself.

    A search among them that looks at as many places as one without a filter finds fewer answers.
    Of an inverted file it looks through as many more lists as take about the time of a search
    without a filter, or a multiple that the build measured to be needed: rows that are left out
    cost little, so that of few allowed rows all lists are looked through, which is exact. A graph
    has to walk through what is left out: it goes 1 / share as wide, and below a share every
    allowed row is compared instead. For short codes see `short_codes`.

    Attributes:
        share: of all rows, above 0.
        faiss: faiss's own selector.
    """

    def __init__(self, allowed: Allowed) -> None:
        self.share = max(1, int(np.count_nonzero(allowed))) / max(1, len(allowed))
        self._allowed, self._rows = allowed, np.flatnonzero(allowed)
        self._bits = np.packbits(allowed, bitorder="little")
        pointer = import_faiss().swig_ptr(self._bits)
        self.faiss = import_faiss().IDSelectorBitmap(len(allowed), pointer)

    def search(
        self, index: Any, queries: NDArray[np.float32], fetch: int, effort: Mapping[str, int]
    ) -> tuple[Scores, Items]:
        """The best of these rows for each query, as `RowSearch.search_rows`."""
        if has_short_codes(index):
            wider = effort.get(WIDENING, WIDENINGS[0]) / WIDENINGS[0]
            lists = {"nprobe": math.ceil(wider * effort.get("nprobe", 1))}
            how = search_parameters(index.base_index, lists) if "nprobe" in effort else None
            return search_allowed(index, queries, fetch, self._allowed, self._rows, wider, how)
        if storage := _storage_if_quicker(index, self.share):
            index = storage
        try:
            how = search_parameters(index, effort, self, fetch)
            return index.search(queries, fetch, params=how)  # type: ignore[no-any-return]
        except RuntimeError as error:
            if _NO_PARAMETERS not in str(error):
                raise
        return self._sifted(index, queries, fetch)

    def _sifted(self, index: Any, queries: NDArray[np.float32], fetch: int) -> tuple[Scores, Items]:
        """Of more answers those allowed, for kinds that take no selector: flat product quantisers."""
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


def _time_of_a_list(share: float) -> float:
    """Time to look through a list of which a share is allowed, where one without a filter takes 1.

    Measured at a million float16 rows of 256 in lists: .12 at .001, .3 at .05, 1.2 at .5, where
    the processor cannot foresee which row is next (benchmarks/LOG.md).
    """
    return 0.12 + 1.63 * float(share**0.65)


def has_short_codes(index: Any) -> bool:
    """Whether codes propose rows, and the best of those are compared whole."""
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    whole = (faiss.IndexScalarQuantizer, faiss.IndexFlat)
    return isinstance(index, faiss.IndexRefine) and isinstance(
        faiss.downcast_index(index.refine_index), whole
    )


def _storage_if_quicker(index: Any, share: float) -> Any:
    """A graph's rows, where comparing each allowed one takes less time than walking; else None."""
    graph = import_faiss().downcast_index(index)
    if not isinstance(graph, import_faiss().IndexHNSW):
        return None
    if share * graph.ntotal > _COMPARED_A_PLACE * graph.hnsw.efSearch / share:
        return None
    return import_faiss().downcast_index(graph.storage)


def search_parameters(
    index: Any, effort: Mapping[str, int], only: "Selector | None" = None, fetch: int = 0
) -> Any:
    """Parameters of one search; the index keeps its own setting for other threads.

    Args:
        index: what is searched.
        effort: its search setting, where it is another than the index's own.
        only: rows that may be answers; None for all.
        fetch: rows wanted.
    """
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    sel, share = ({"sel": only.faiss}, only.share) if only else ({}, 1.0)
    if isinstance(index, faiss.IndexPreTransform):
        inner = search_parameters(index.index, effort, only, fetch)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = search_parameters(index.base_index, effort, only, fetch)
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        wider = effort.get(WIDENING, WIDENINGS[0]) / 100 / _time_of_a_list(share) if only else 1
        nprobe = math.ceil(effort.get("nprobe", index.nprobe) * max(1, wider))
        return faiss.SearchParametersIVF(nprobe=min(nprobe, index.nlist), **sel)
    if isinstance(index, faiss.IndexHNSW):
        wanted = max(index.hnsw.efSearch, fetch) / share
        return faiss.SearchParametersHNSW(efSearch=min(index.ntotal, int(wanted) + 1), **sel)
    return faiss.SearchParameters(**sel)
