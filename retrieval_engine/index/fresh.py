"""An index over a store that has changed since: what is newer is compared, what is gone is not."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import IndexFailure
from retrieval_engine.index.behind import Behind, compare
from retrieval_engine.index.build_record import contents_of
from retrieval_engine.index.directory import SavedIndex
from retrieval_engine.index.exact import Block, ExactIndex
from retrieval_engine.index.faiss_rows import every_row
from retrieval_engine.index.grouping import (
    Allowed,
    GroupedIndex,
    Index,
    Items,
    PerMask,
    Scores,
    best_along,
    read_only,
)
from retrieval_engine.index.threads import Threads
from retrieval_engine.records import Modality
from retrieval_engine.store import Store

Best: TypeAlias = tuple[Scores, Items]
Rest: TypeAlias = Callable[[NDArray[np.float32], int, Allowed | None], list[Best]]
# Newer vectors are held in memory up to this size, and read anew for each search above it.
_HELD_BYTES = 256 << 20


class FreshIndex:
    """An `Index` over the items of a store as they are now; numbers are those of `catalog`.

    The newer items are compared by another thread while the index is searched.

    Args:
        saved: an index over the store as it was.
        store: as it is.
        behind: what tells the two apart.

    Attributes:
        catalog: the items of the store.
        newer: number of items that the saved index lacks; each is compared exactly.
        gone: number of its items that are no more.
    """

    def __init__(self, saved: SavedIndex, store: Store, behind: Behind) -> None:
        self.catalog, self._now = behind.catalog, behind.now
        self._saved, self._store = saved, store
        self._there = read_only(self._now >= 0)
        self._there_and = PerMask(lambda allowed: read_only(self._there & allowed[self._now]))
        self._newer = behind.newer
        self.newer, self.gone = len(self._newer), int((self._now < 0).sum())
        self._rest = _exact(saved, behind) if self.newer else None
        self._threads = Threads()

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.catalog)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._saved.dim

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people about how far the saved index has fallen behind."""
        path, store = str(self._saved.path), str(self._store.path)
        again = f"`update_index(store={store!r}, out={path!r})` brings it up to date"
        lines = []
        if self.newer:
            lines.append(
                f"{self.newer:,} items are newer than {path}: compared one by one; {again}"
            )
        if self.gone:
            lines.append(f"{self.gone:,} items of {path} are gone and left out; {again}")
        return tuple(lines)

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Items]:
        """As `Index.search`."""
        there: Allowed | None = None
        if allowed is not None:
            there = self._there_and(allowed)
        elif self.gone:
            there = self._there
        only = None if allowed is None else allowed[self._newer]
        rest = self._rest and self._threads().submit(self._rest, queries, k, only)
        scores, items = self._saved.search(queries, k, there)
        items = np.where(items >= 0, self._now[items], -1)
        if rest is None:
            return best_along(scores, items, k)
        for row, (best, numbers) in enumerate(rest.result()):
            every = np.concatenate([scores[row], best])
            all_items = np.concatenate([items[row], self._newer[numbers]])
            scores[row], items[row] = best_along(every[None], all_items[None], k)
        return scores, items


def fresh_index(saved: SavedIndex, store: Store, split: str | None) -> FreshIndex | None:
    """A view of an index through its store as it is now; None where the two agree.

    Raises:
        IndexFailure: the index holds none of the store's items.
    """
    if saved.manifest.contents == contents_of(store):
        return None
    behind = compare(saved, store, split)
    if len(behind.catalog) and (behind.held < 0).all():
        raise IndexFailure(
            f"{saved.path} was built from {saved.manifest.store} and holds none of the items of "
            f"{store.path}",
            hint=f"build one with `build_index(store={str(store.path)!r}, out=OUT)`",
        )
    return FreshIndex(saved, store, behind)


def _exact(saved: SavedIndex, behind: Behind) -> Rest:
    """Exact search over the newer items."""
    store, rows = behind.store, behind.rows
    feature = saved.manifest.feature
    shape = store.features(Modality.IMAGES)[feature].shape
    if 4 * len(rows) * int(np.prod(shape)) <= _HELD_BYTES:
        held = store.read(Modality.IMAGES, feature, rows)
        if saved.manifest.backend != "faiss":
            return _Held(held)
        every = GroupedIndex(every_row(held.reshape(-1, shape[-1])), shape[0])
        return _ranked(every)

    def blocks(size: int) -> Iterator[Block]:
        for start in range(0, len(rows), size):
            yield start, store.read(Modality.IMAGES, feature, rows[start : start + size])

    return _ranked(ExactIndex.streaming(blocks, len(rows), shape))


def _ranked(index: Index) -> Rest:
    """The best of an index for each query, without empty places."""

    def best(queries: NDArray[np.float32], k: int, allowed: Allowed | None) -> list[Best]:
        found = zip(*index.search(queries, min(k, index.items), allowed), strict=True)
        return [(scores[items >= 0], items[items >= 0]) for scores, items in found]

    return best


class _Held:
    """A few vectors in memory, where faiss may not be installed.

    Args:
        vectors: (n, v, d).
    """

    def __init__(self, vectors: NDArray[np.floating]) -> None:
        self._n, self._v, dim = vectors.shape
        self._flat = vectors.reshape(-1, dim).astype(np.float32)

    def __call__(self, queries: NDArray[np.float32], k: int, allowed: Allowed | None) -> list[Best]:
        """The k best of each query, and all that equal the last of them, in no order."""
        found = []
        for query in queries:
            scores = (self._flat @ query).reshape(self._n, self._v).max(axis=1)
            if allowed is not None:
                scores[~allowed] = -np.inf
            floor = np.partition(scores, self._n - k)[self._n - k] if self._n > k else -np.inf
            numbers = np.flatnonzero((scores >= floor) & (scores > -np.inf))
            found.append((scores[numbers], numbers))
        return found
