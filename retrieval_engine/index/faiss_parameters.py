"""What faiss calls its settings: those of an index, and those of one search in it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from retrieval_engine.errors import MissingExtra
from retrieval_engine.index.grouping import Allowed

# Settings that trade time for recall, and where doubling them starts.
EFFORTS = {"nprobe": 1, "efSearch": 16}


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
        import_faiss().ParameterSpace().set_index_parameter(index, name, value)


def effort_name(index: Any) -> str:
    """The setting that trades time for recall, whatever wraps the index; empty without one."""
    space = import_faiss().ParameterSpace()
    space.initialize(index)
    ranges = space.parameter_ranges
    known = [ranges.at(i).name for i in range(ranges.size())]
    return next((name for name in EFFORTS if name in known), "")


def list_count(index: Any) -> int:
    """Lists of an inverted file."""
    return int(import_faiss().extract_index_ivf(index).nlist)


class Selector:
    """Rows that may be answers, as faiss takes them; faiss keeps no hold of the bits itself.

    Attributes:
        share: of all rows, above 0.
        faiss: faiss's own selector.
    """

    def __init__(self, allowed: Allowed) -> None:
        self.share = max(1, int(np.count_nonzero(allowed))) / max(1, len(allowed))
        self._bits = np.packbits(allowed, bitorder="little")
        pointer = import_faiss().swig_ptr(self._bits)
        self.faiss = import_faiss().IDSelectorBitmap(len(allowed), pointer)


def search_parameters(
    index: Any, fetch: int, effort: Mapping[str, int], only: Selector | None
) -> Any:
    """Parameters of one search; the index keeps its own setting for other threads.

    Args:
        index: what is searched.
        fetch: rows wanted.
        effort: its search setting, where it is another than the index's own.
        only: rows that may be answers; None for all.
    """
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    sel = {"sel": only.faiss} if only else {}
    if isinstance(index, faiss.IndexPreTransform):
        inner = search_parameters(index.index, fetch, effort, only)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = search_parameters(index.base_index, fetch, effort, only)
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        nprobe = min(effort.get("nprobe", index.nprobe), index.nlist)
        return faiss.SearchParametersIVF(nprobe=nprobe, **sel)
    if isinstance(index, faiss.IndexHNSW):
        # Rows that are not allowed are walked through, and take places among the efSearch.
        wanted = max(index.hnsw.efSearch, fetch) / (only.share if only else 1)
        return faiss.SearchParametersHNSW(efSearch=min(index.ntotal, int(wanted) + 1), **sel)
    return faiss.SearchParameters(**sel)
