"""Rows in a faiss index; needs the extra `cpu` (faiss-cpu) or `gpu` (faiss-gpu), never both."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import IndexFailure, UsageError
from retrieval_engine.index.backends import typed_options
from retrieval_engine.index.faiss_parameters import (
    EFFORTS,
    REFINED,
    WIDENING,
    WIDENINGS,
    Selector,
    effort_name,
    has_short_codes,
    import_faiss,
    keep_half_precision_whole,
    list_count,
    rotate_only,
    search_parameters,
    set_parameters,
)
from retrieval_engine.index.grouping import Allowed, Items, PerMask, Scores
from retrieval_engine.index.recipes import Recipe
from retrieval_engine.index.vectors import StoredVectors
from retrieval_engine.machine import threads_wanted

FILE = "vectors.faiss"
_MOST = {"efSearch": 2048, REFINED: 512}
# Below so much work more threads cost more than they give: on busy cores, ten times the time.
_THREADED_QUERIES = 16
_THREADED_COMPARISONS = 20_000_000
_THREADED_ROWS = 20_000
# From 20 queries on faiss multiplies matrices, which rounds otherwise than one query alone.
_QUERIES_AT_ONCE = 16


class FaissRows:
    """Row search in a faiss index.

    Threads: a call with little to do (fewer than 16 queries, or than 20 million comparisons) runs
    on one thread, a larger one on as many as the process may use (`OMP_NUM_THREADS`, else its
    CPUs). `search_rows` releases the GIL and may be called from several threads at once.

    Args:
        index: an index with the inner product as its metric.
        effort: name and value of its search setting; none for exhaustive kinds.
    """

    def __init__(self, index: Any, effort: Mapping[str, int]) -> None:
        self._index = index
        self._effort: dict[str, int] = {}
        self._selector = PerMask(Selector)
        self.set_effort(effort)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Length of a row."""
        return int(self._index.d)

    @property
    def effort(self) -> Mapping[str, int]:
        """The search setting in force, e.g. `{"nprobe": 16}`; empty for exhaustive kinds."""
        return dict(self._effort)

    def efforts(self) -> Iterator[Mapping[str, int]]:
        """Search settings to try, from quick to thorough; one empty setting where there is none."""
        name = effort_name(self._index)
        if not name:
            yield {}
            return
        last = list_count(self._index) if name == "nprobe" else _MOST[name]
        step = 2**0.5 if name == REFINED else 2  # where more of it costs at once
        value = float(EFFORTS[name])
        while value < last:
            yield {name: round(value)}
            value *= step
        yield {name: last}

    def filter_efforts(self) -> Iterator[Mapping[str, int]]:
        """The setting in force as it may be with filters, from quick to thorough."""
        yield self.effort
        if "nprobe" in self._effort or has_short_codes(self._index):
            yield from ({**self._effort, WIDENING: more} for more in WIDENINGS[1:])

    def set_effort(self, effort: Mapping[str, int]) -> None:
        """Put a search setting in force, for all threads."""
        set_parameters(self._index, effort)
        self._effort = dict(effort)

    def search_rows(
        self, queries: NDArray[np.float32], fetch: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Items]:
        """As `RowSearch.search_rows`."""
        many = len(queries) >= _THREADED_QUERIES
        many = many and len(queries) * self.rows >= _THREADED_COMPARISONS
        # The number of threads belongs to the calling thread, so each call sets its own.
        import_faiss().omp_set_num_threads(threads_wanted() if many else 1)
        only = None if allowed is None else self._selector(allowed)
        effort, how = self._effort, None
        scores = np.empty((len(queries), fetch), np.float32)
        rows = np.empty((len(queries), fetch), np.int64)
        pending = np.arange(len(queries))
        while len(pending):
            for at in range(0, len(pending), _QUERIES_AT_ONCE):
                some = pending[at : at + _QUERIES_AT_ONCE]
                scores[some], rows[some] = (
                    only.search(self._index, queries[some], fetch, effort)
                    if only
                    else self._index.search(queries[some], fetch, params=how)
                )
            pending = pending[rows[pending, -1] < 0]
            lists = effort.get("nprobe", 0)
            if not len(pending) or not lists or lists >= list_count(self._index):
                break
            # The lists visited hold fewer rows than were asked for: visit more of them.
            effort = {**effort, "nprobe": 4 * lists}
            how = search_parameters(self._index, fetch, effort, None)
        return scores, rows


@dataclass(frozen=True, slots=True, kw_only=True)
class FaissOptions:
    """None of its own: a faiss recipe is its factory string."""


def read_options(recipe: Recipe) -> FaissOptions:
    """Check that a recipe says what faiss needs.

    Raises:
        UsageError: it has no factory string, or options.
    """
    if not recipe.factory:
        raise UsageError("`factory` is missing; it is a faiss factory string")
    return typed_options(FaissOptions, recipe)


def build(recipe: Recipe, vectors: StoredVectors, seed: int) -> tuple[FaissRows, str]:
    """An index of all rows, in memory.

    Args:
        recipe: what to build.
        vectors: read block by block; a sample of them first by kinds that are trained.
        seed: of the sample.

    Returns:
        The index and its factory string.

    Raises:
        UsageError: faiss does not understand the factory string.
        IndexFailure: training or adding failed.
    """
    faiss = import_faiss()
    faiss.omp_set_num_threads(threads_wanted() if vectors.rows >= _THREADED_ROWS else 1)
    factory = recipe.factory_for(vectors.rows, vectors.dim)
    try:
        index = faiss.index_factory(vectors.dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UsageError(f"faiss cannot make {factory!r}: {_reason(error)}") from error
    try:
        if recipe.ef_construction:
            set_parameters(index, {"efConstruction": recipe.ef_construction})
        keep_half_precision_whole(index)
        if not index.is_trained:
            sample = vectors.sample(_training_rows(factory), seed)
            rotate_only(index, sample)
            index.train(sample)
        for block in vectors.blocks():
            index.add(block)
    except RuntimeError as error:
        raise IndexFailure(f"faiss cannot build {factory!r}: {_reason(error)}") from error
    return FaissRows(index, {}), factory


def every_row(vectors: NDArray[Any]) -> FaissRows:
    """Rows that are compared one by one, in memory; (n, dim) float16 or float32, kept as they are.

    For few of them and one query it takes half the time of NumPy, whose threads wait for each
    other on a busy machine.
    """
    faiss = import_faiss()
    kind = "SQfp16" if vectors.dtype == np.float16 else "Flat"
    index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    rows = np.ascontiguousarray(vectors, np.float32)
    index.train(rows)
    index.add(rows)
    return FaissRows(index, {})


def _training_rows(factory: str) -> int:
    """How many rows training wants: 64 a list, and enough for a product quantiser."""
    lists = re.search(r"IVF(\d+)", factory)
    return max(65_536, 64 * int(lists[1]) if lists else 0)


def save(rows: FaissRows, folder: Path) -> None:
    """Write the index into a folder."""
    import_faiss().write_index(rows._index, str(folder / FILE))


def open_rows(folder: Path, effort: Mapping[str, int]) -> FaissRows:
    """The index of a folder, mapped into memory: it opens in milliseconds at any size.

    Raises:
        IndexFailure: faiss cannot read the file.
    """
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise IndexFailure(
            f"faiss cannot read {folder / FILE}: {_reason(error)}", hint="build the index again"
        ) from error
    return FaissRows(index, effort)


def extended(
    folder: Path,
    effort: Mapping[str, int],
    keep: NDArray[np.bool_],
    blocks: Iterator[NDArray[np.float32]],
) -> FaissRows:
    """The rows of a folder that are to be kept, in their order, and new ones behind them.

    Args:
        folder: of the index.
        effort: its search setting.
        keep: (rows,) which of its rows stay.
        blocks: (b, dim) new rows.

    Raises:
        IndexFailure: this kind of index takes no rows away, or the library failed.
    """
    faiss = import_faiss()
    faiss.omp_set_num_threads(threads_wanted() if len(keep) >= _THREADED_ROWS else 1)
    try:
        index = faiss.read_index(str(folder / FILE))
        if not keep.all():
            _remove(index, keep)
        for block in blocks:
            index.add(block)
    except RuntimeError as error:
        raise IndexFailure(
            f"faiss cannot update {folder / FILE}: {_reason(error)}",
            hint="build it again with `build_index()`; recipes of flat and ivf kind take rows away",
        ) from error
    return FaissRows(index, effort)


def _remove(index: Any, keep: NDArray[np.bool_]) -> None:
    """Take rows out and number the others anew, without a gap."""
    faiss = import_faiss()
    if isinstance(index, faiss.IndexRefine):
        for part in (index.base_index, index.refine_index):
            _remove(faiss.downcast_index(part), keep)
        index.ntotal = index.base_index.ntotal
        return
    index.remove_ids(Selector(~keep).faiss)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None:
        return  # the other kinds number by position
    lists, new = ivf.invlists, np.cumsum(keep) - 1
    for number in range(lists.nlist):
        if size := lists.list_size(number):
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            ids[:] = new[ids]


def version() -> str:
    """Version of the library."""
    return str(import_faiss().__version__)


def _reason(error: RuntimeError) -> str:
    """What faiss says went wrong, without its file and function names."""
    text = str(error).strip().splitlines()[-1]
    return text.rpartition("failed: ")[2] or text
