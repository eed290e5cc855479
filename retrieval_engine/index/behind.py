"""What a store has that an index over it lacks, and the other way round."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.index.catalog import SavedCatalog
from retrieval_engine.index.directory import SavedIndex
from retrieval_engine.store import Store


class Behind(NamedTuple):
    """An index compared with its store as it is now.

    Attributes:
        catalog: the items as they are now.
        held: (items,) the number of each in the index, -1 for one that is newer.
        now: (items of the index,) the number of each in the catalogue, -1 for one that is gone.
        newer: (n,) numbers of the items that the index lacks.
        store: where the vectors of those are.
        rows: (n,) their rows there.
        grown: whether the catalogue begins with that of the index as it is, and ends with these.
    """

    catalog: SavedCatalog
    held: NDArray[np.int64]
    now: NDArray[np.int64]
    newer: NDArray[np.int64]
    store: Store
    rows: NDArray[np.int64]
    grown: bool


def compare(saved: SavedIndex, store: Store, split: str | None) -> Behind:
    """Compare an index with its store.

    Where the store only grew, nothing is read but what was added: at a million items, a tenth of
    the time.

    Args:
        saved: the index.
        store: what it was built from, as it is now.
        split: items of this one, or of all.
    """
    catalog, held, added = _compare(saved, store, split)
    newer, known = np.flatnonzero(held < 0), np.flatnonzero(held >= 0)
    now = np.full(saved.items, -1, np.int64)
    now[held[known]] = known
    rows, grown = catalog.image_rows(added, newer), added is not store
    if (rows < 0).any():  # some have the content of an old one
        added, rows = store, catalog.image_rows(store, newer)
    return Behind(catalog, held, now, newer, added, rows, grown)


def _compare(
    saved: SavedIndex, store: Store, split: str | None
) -> tuple[SavedCatalog, NDArray[np.int64], Store]:
    known = saved.manifest.store_files
    if known and (split or "") == saved.manifest.split and (added := store.since(known)):
        catalog = saved.catalog.grown(store, added, split)
        if catalog is not None:
            held = np.arange(len(catalog), dtype=np.int64)
            held[saved.items :] = -1
            return catalog, held, added
    catalog = SavedCatalog.of_store(store, split)
    return catalog, saved.catalog.positions(catalog), store
