"""Top-k over items whose vectors may be several rows each.

The score of an item is the **maximum** over its rows, so the rows of a ranked list that come first
for their item are that item's score, and k distinct items among the best rows are the k best items.
Equal scores: the lower item number first.
"""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import ShapeError, UsageError

Scores = NDArray[np.float32]
Items = NDArray[np.int64]
Allowed = NDArray[np.bool_]
"""(items,) whether each item may be an answer."""

# Rows fetched beyond k, so that a tie at the k-th place is seen without a second search.
_SLACK = 8
# A tie longer than this many rows is cut where the backend cut it: a gallery of equal vectors
# would otherwise be fetched whole for each query.
_TIE_ROWS = 4096


T = TypeVar("T")
_MASKS = 4


class PerMask(Generic[T]):
    """Keeps what was made of the last few masks, of those that are read-only.

    Args:
        make: what is made of one.
    """

    def __init__(self, make: Callable[[Allowed], T]) -> None:
        self._make = make
        self._known: list[tuple[Allowed, T]] = []

    def __call__(self, mask: Allowed) -> T:
        """What was made of a mask."""
        for known, made in self._known:
            if known is mask:
                return made
        made = self._make(mask)
        if not mask.flags.writeable:
            self._known = [(mask, made), *self._known][:_MASKS]
        return made


def read_only(mask: Allowed) -> Allowed:
    """The mask, which nobody may change from now on."""
    mask.flags.writeable = False
    return mask


class Index(Protocol):
    """Answers top-k by inner product.

    Attributes:
        items: number of items.
        dim: length of a vector.
    """

    @property
    def items(self) -> int:
        """See the class."""

    @property
    def dim(self) -> int:
        """See the class."""

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Items]:
        """The k best items of each query, best first.

        Args:
            queries: (q, dim) float32, finite; used as they are, never normalised.
            k: at least 1; more than `items` gives what there is.
            allowed: only these items may be answers; None allows all.

        Returns:
            (q, k) float32 scores and (q, k) int64 item numbers. An item's score is the largest
            inner product over its rows; equal scores come in order of item number. Places that
            no item fills hold -inf and -1.

        Raises:
            UsageError: k is below 1.
            ShapeError: the queries have another shape or are not finite.
        """


class RowSearch(Protocol):
    """What a backend must answer: the best rows, without a thought for items."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def dim(self) -> int:
        """Length of a row."""

    def search_rows(
        self, queries: NDArray[np.float32], fetch: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Items]:
        """The best rows of each query, best first.

        Args:
            queries: (q, dim) float32.
            fetch: how many rows.
            allowed: (rows,) which rows may be answers; None allows all.

        Returns:
            (q, fetch) scores and row numbers; -1 fills the end only when the backend can find no
            more rows, however hard it looks.
        """


def check_queries(queries: NDArray[np.float32], dim: int, k: int) -> NDArray[np.float32]:
    """The queries as a contiguous float32 array, or an error that says what is wrong.

    Raises:
        UsageError: k is below 1.
        ShapeError: not (q, dim), or a value is NaN or infinite.
    """
    if k < 1:
        raise UsageError(f"`k` is {k}; it must be at least 1")
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ShapeError(f"queries have shape {queries.shape}; this index takes (q, {dim})")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if not np.isfinite(queries).all():
        raise ShapeError("a query holds NaN or infinity; was it encoded in a range too narrow?")
    return queries


class GroupedIndex:
    """An `Index` over a backend's rows, of which each item has several.

    Args:
        rows: row r belongs to item r // rows_per_item.
        rows_per_item: vectors of each item, 1 for BLIP and 32 for BLIP-2.

    Attributes:
        rows: as given.
        rows_per_item: as given.
    """

    def __init__(self, rows: RowSearch, rows_per_item: int) -> None:
        self.rows = rows
        self.rows_per_item = rows_per_item
        self._rows_of = PerMask(lambda allowed: read_only(np.repeat(allowed, rows_per_item)))

    @property
    def items(self) -> int:
        """Number of items."""
        return self.rows.rows // self.rows_per_item

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.rows.dim

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Items]:
        """As `Index.search`, from a search over rows.

        Fetches more rows than items are wanted, and again four times as many for the queries that
        did not see k distinct items or were cut within a tie.
        """
        queries = check_queries(queries, self.dim, k)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        items = np.full((len(queries), k), -1, dtype=np.int64)
        items_there = self.items if allowed is None else int(np.count_nonzero(allowed))
        rows_there = items_there * self.rows_per_item
        allowed_rows = allowed
        if allowed is not None and self.rows_per_item > 1:
            allowed_rows = self._rows_of(allowed)
        wanted = min(k, items_there)
        pending = np.arange(len(queries))
        fetch = wanted * min(self.rows_per_item, 4) + _SLACK
        while len(pending) and wanted:
            fetch = min(fetch, rows_there)
            row_scores, rows = self.rows.search_rows(queries[pending], fetch, allowed_rows)
            row_scores = np.where(rows < 0, np.float32(-np.inf), row_scores)
            tops, top_items = _best_items(
                row_scores, rows // self.rows_per_item, wanted, self.rows_per_item
            )
            scores[pending, :wanted], items[pending, :wanted] = tops, top_items
            whole = (rows[:, -1] < 0) | (fetch == rows_there)
            short = top_items[:, -1] < 0
            cut_in_tie = (row_scores[:, -1] == tops[:, -1]) & (fetch < _TIE_ROWS)
            pending = pending[~whole & (short | cut_in_tie)]
            fetch *= 4
        return scores, items


def best_along(scores: Scores, items: Items, k: int) -> tuple[Scores, Items]:
    """The k best along the last axis of (q, n), best first; equal scores by item number."""
    order = np.lexsort((items, -scores), axis=-1)[:, :k]
    if len(order) == 1:  # the other way takes some 40 us, whatever the length
        return scores[:, order[0]], items[:, order[0]]
    return np.take_along_axis(scores, order, -1), np.take_along_axis(items, order, -1)


def _best_items(
    scores: Scores, items: Items, wanted: int, rows_per_item: int
) -> tuple[Scores, Items]:
    """(q, wanted) best items of (q, fetch) rows that come with their item's number."""
    if rows_per_item == 1:
        return best_along(scores, items, wanted)
    tops = np.full((len(scores), wanted), -np.inf, dtype=np.float32)
    top_items = np.full((len(scores), wanted), -1, dtype=np.int64)
    for query in range(len(scores)):
        best, numbers = _first_of_each(scores[query], items[query])
        n = min(wanted, len(numbers))
        tops[query, :n], top_items[query, :n] = best[:n], numbers[:n]
    return tops, top_items


def _first_of_each(scores: Scores, items: Items) -> tuple[Scores, Items]:
    """Each item once with its best score, in order of score, then of item number."""
    found = items >= 0
    scores, items = scores[found], items[found]
    order = np.lexsort((items, -scores))
    scores, items = scores[order], items[order]
    _, first = np.unique(items, return_index=True)
    first.sort()
    return scores[first], items[first]


def merge_queries(scores: Scores, items: Items, k: int) -> tuple[Scores, Items]:
    """One ranked list from the lists of several vectors that are one query: the maximum per item.

    Exact when each list is: an item that is among the k best by its maximum is among the k best
    of the vector that gives the maximum.

    Args:
        scores: (v, k) of the query's v vectors.
        items: (v, k) item numbers, -1 where there is none.
        k: length of the result.

    Returns:
        At most k scores and item numbers, best first.
    """
    top_scores, top_items = _first_of_each(scores.ravel(), items.ravel())
    return top_scores[:k], top_items[:k]


def late_interaction(query: NDArray[np.float32], gallery: NDArray[np.float32]) -> Scores:
    """Mean over a query image's vectors of the best match among a gallery image's vectors.

    The sum-of-maxima of ColBERT (Khattab and Zaharia, SIGIR 2020, section 3.3) divided by the
    number of query vectors. For two images with several vectors each it has what the plain maximum
    over all pairs lacks: one pair of vectors that is alike in all pictures does not decide.

    Args:
        query: (q, d).
        gallery: (n, q, d).

    Returns:
        (n,) float32; 1 for an image and itself when vectors are normalised.
    """
    pairs = gallery.astype(np.float32) @ query.T  # (n, q of gallery, q of query)
    best: Scores = pairs.max(axis=1).mean(axis=1)
    return best
