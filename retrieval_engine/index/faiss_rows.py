"""Search over the rows of a faiss index, which may lie in several parts."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.index.faiss_parameters import (
    EFFORTS,
    REFINED,
    WIDENING,
    WIDENINGS,
    Selector,
    effort_names,
    has_short_codes,
    import_faiss,
    list_count,
    part_of,
    search_parameters,
    set_parameters,
)
from retrieval_engine.index.grouping import Allowed, Items, PerMask, Scores
from retrieval_engine.index.threads import Threads
from retrieval_engine.machine import threads_wanted

_MOST = {"efSearch": 2048, REFINED: 512}
# Of lists of codes: the share looked through, times this and the root of the rows, is how many
# times the rows wanted are compared whole. Both then cost about the same at the least time.
_REFINED_A_SHARE = 1 / 6
_FEWEST_LISTS = 1 / 64
# Below so much work more threads cost more than they give: on busy cores, ten times the time.
_THREADED_QUERIES = 16
_THREADED_COMPARISONS = 20_000_000
# From so many rows on, parts are looked through by several threads even for one query.
_PARALLEL_ROWS = 2_000_000
# From 20 queries on faiss multiplies matrices, which rounds otherwise than one query alone.
_QUERIES_AT_ONCE = 16


class FaissRows:
    """Row search in a faiss index, or in several that hold one stretch of the rows each.

    Threads: a call with little to do (fewer than 16 queries, or than 20 million comparisons) runs
    on one thread, a larger one on as many as the process may use (`OMP_NUM_THREADS`, else its
    CPUs), as are several parts of two million rows or more together. `search_rows` releases the GIL and may be called from several threads at once.

    Args:
        parts: indexes of one kind and training, with the inner product as their metric.
        effort: name and value of their search setting; none for exhaustive kinds.
    """

    def __init__(self, parts: Sequence[Any], effort: Mapping[str, int]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(part.ntotal for part in parts)])
        self._effort: dict[str, int] = {}
        self._selectors = PerMask(self._select)
        self._threads = Threads()
        self.set_effort(effort)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._starts[-1])

    @property
    def dim(self) -> int:
        """Length of a row."""
        return int(self._parts[0].d)

    @property
    def effort(self) -> Mapping[str, int]:
        """The search setting in force, e.g. `{"nprobe": 16}`; empty for exhaustive kinds."""
        return dict(self._effort)

    def efforts(self) -> Iterator[Mapping[str, int]]:
        """Search settings to try, from quick to thorough; one empty setting where there is none."""
        names = effort_names(self._parts[0])
        if not names:
            yield {}
            return
        name = names[0]
        last = list_count(self._parts[0]) if name == "nprobe" else _MOST[name]
        step = 2**0.5 if REFINED in names else 2  # where more of it costs at once
        value = float(EFFORTS[name])
        if len(names) > 1:  # lists, and what they propose
            step, value = 2**0.25, max(value, last * _FEWEST_LISTS)
        while value < last:
            yield self._settings(names, round(value))
            value *= step
        settings = self._settings(names, last)
        yield settings
        while settings.get(REFINED, _MOST[REFINED]) < _MOST[REFINED]:  # through all lists already
            settings = {**settings, REFINED: min(_MOST[REFINED], 2 * settings[REFINED])}
            yield settings

    def _settings(self, names: list[str], value: int) -> Mapping[str, int]:
        """The first of these settings at a value, and the second as goes with it."""
        if len(names) == 1:
            return {names[0]: value}
        share = value / list_count(self._parts[0])
        refined = math.ceil(_REFINED_A_SHARE * share * math.sqrt(self.rows))
        return {names[0]: value, REFINED: min(_MOST[REFINED], max(EFFORTS[REFINED], refined))}

    def filter_efforts(self) -> Iterator[Mapping[str, int]]:
        """The setting in force as it may be with filters, from quick to thorough."""
        yield self.effort
        if "nprobe" in self._effort or has_short_codes(self._parts[0]):
            yield from ({**self._effort, WIDENING: more} for more in WIDENINGS[1:])

    def set_effort(self, effort: Mapping[str, int]) -> None:
        """Put a search setting in force, for all threads."""
        for part in self._parts:
            set_parameters(part, part_of(effort, part.ntotal / max(1, self.rows)))
        self._effort = dict(effort)

    def search_rows(
        self, queries: NDArray[np.float32], fetch: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Items]:
        """As `RowSearch.search_rows`."""
        many = len(queries) >= _THREADED_QUERIES
        many = many and len(queries) * self.rows >= _THREADED_COMPARISONS
        # The number of threads belongs to the calling thread, so each call sets its own.
        import_faiss().omp_set_num_threads(threads_wanted() if many else 1)
        selectors = None if allowed is None else self._selectors(allowed)
        effort, part = self._effort, self._parts[0]
        scores = np.empty((len(queries), fetch), np.float32)
        rows = np.empty((len(queries), fetch), np.int64)
        pending = np.arange(len(queries))
        while len(pending):
            for at in range(0, len(pending), _QUERIES_AT_ONCE):
                some = pending[at : at + _QUERIES_AT_ONCE]
                if len(self._parts) > 1 or selectors:
                    best = self._of_parts(queries[some], fetch, effort, selectors)
                else:
                    how = None if effort is self._effort else search_parameters(part, effort)
                    best = part.search(queries[some], fetch, params=how)
                scores[some], rows[some] = best
            pending = pending[rows[pending, -1] < 0]
            lists = effort.get("nprobe", 0)
            if not len(pending) or not lists or lists >= list_count(self._parts[0]):
                break
            # The lists visited hold fewer rows than were asked for: visit more of them.
            effort = {**effort, "nprobe": 4 * lists}
        return scores, rows

    def _select(self, allowed: Allowed) -> list[Selector | None]:
        """What may be found in each part; None where nothing may."""
        spans = itertools.pairwise(self._starts.tolist())
        parts = [allowed[start:stop] for start, stop in spans]
        return [Selector(some) if some.any() else None for some in parts]

    def _of_parts(
        self,
        queries: NDArray[np.float32],
        fetch: int,
        effort: Mapping[str, int],
        selectors: Sequence[Selector | None] | None,
    ) -> tuple[Scores, Items]:
        """The best rows of all parts; large parts are looked through at the same time."""
        threads = import_faiss().omp_get_max_threads()

        def ask(number: int) -> tuple[Scores, Items] | None:
            import_faiss().omp_set_num_threads(threads)
            part, only = self._parts[number], selectors[number] if selectors else None
            if only:
                scores, rows = only.search(part, queries, fetch, effort)
            elif selectors:
                return None
            else:
                how = None if effort is self._effort else search_parameters(part, effort)
                scores, rows = part.search(queries, fetch, params=how)
            return scores, np.where(rows < 0, -1, rows + self._starts[number])

        numbers = range(len(self._parts))
        at_once = threads == 1 and self.rows >= _PARALLEL_ROWS
        found = list(self._threads().map(ask, numbers) if at_once else map(ask, numbers))
        return _merged([best for best in found if best], len(queries), fetch)


def _merged(found: list[tuple[Scores, Items]], n: int, fetch: int) -> tuple[Scores, Items]:
    """The best rows for n queries out of those of several parts, or of none."""
    none = np.full((n, fetch), -np.inf, np.float32), np.full((n, fetch), -1, np.int64)
    scores, rows = (np.concatenate(side, axis=1) for side in zip(none, *found, strict=True))
    order = np.lexsort((rows, -scores, rows < 0), axis=1)[:, :fetch]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


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
    return FaissRows([index], {})
