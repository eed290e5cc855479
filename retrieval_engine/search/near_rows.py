"""An index as what finds near images for `find_duplicates`, in rows of the store."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.index import open_index
from retrieval_engine.index.fresh import fresh_index
from retrieval_engine.search.pairing import check_pair
from retrieval_engine.store import Store


class NearRows:
    """The nearest images by an index, those included that are newer than it.

    Args:
        path: of an index over the store.
        store: whose rows are answered.
        split: what the index holds.

    Raises:
        FingerprintMismatch: the index holds vectors of another encoder.
        IndexFailure: it is none, or of another split.
    """

    def __init__(self, path: Path, store: Store, split: str | None) -> None:
        saved = open_index(path)
        check_pair(saved, store, split)
        now = fresh_index(saved, store, split)
        self._index, self._catalog, self._store = now or saved, (now or saved).catalog, store

    def search(
        self, queries: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(q, k) scores, best first, and rows of the store, -1 where there are fewer."""
        scores, items = self._index.search(queries, k)
        rows = np.full(items.shape, -1, np.int64)
        rows[items >= 0] = self._catalog.image_rows(self._store, items[items >= 0])
        return scores, rows
