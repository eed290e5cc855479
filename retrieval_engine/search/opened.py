"""Opens a searcher over what is there: a store and an index, or one of them."""

from collections.abc import Collection
from pathlib import Path
from typing import TypedDict

from retrieval_engine.encoding.projected import open_through
from retrieval_engine.errors import FingerprintMismatch, IndexFailure, StoreNotFound
from retrieval_engine.models import Encoder
from retrieval_engine.search.searcher import Searcher
from retrieval_engine.store import Store


class _How(TypedDict):
    split: str | None
    sources: Collection[str]
    device: str
    model: str


def open_searcher(  # noqa: PLR0913 (what `Engine` was told)
    store: Path,
    index: Path | None = None,
    *,
    default_index: Path | None = None,
    head: Path | None = None,
    split: str | None = None,
    sources: Collection[str] = (),
    device: str = "auto",
    model: str = "",
    encoder: Encoder | None = None,
) -> Searcher:
    """A searcher over paths, which says in its `notes` what it does without.

    Args:
        store: directory of the store. It may be missing when `index` is given.
        index: an index that must be used, or fail.
        default_index: an index that is used when `index` is None, when it is there, and when it
            goes with the store and the split; else every image of the store is compared.
        head: directory of a head through which the store is seen; needs the store.
        split: see `Searcher`.
        sources: see `Searcher`.
        device: for the encoder.
        model: where the store's checkpoint is now, if it has moved.
        encoder: the store's, where it is open already; as it is without the head.

    Raises:
        StoreNotFound: no store, and no index was asked for.
        VlreError: as `Searcher`.
    """
    opened: Store | None = None
    notes: list[str] = []
    how: _How = {"split": split, "sources": sources, "device": device, "model": model}
    try:
        opened = open_through(store, head)
    except StoreNotFound:
        if index is None or head is not None:
            raise
        notes.append(f"no store at {store}: searching {index} alone")
    if index is None and default_index is not None and default_index.exists():
        try:
            return Searcher(opened, default_index, encoder, **how)
        except (FingerprintMismatch, IndexFailure) as error:
            notes.append(f"{default_index} is not used: {error.message}")
    searcher = Searcher(opened, index, encoder, **how)
    searcher.notes = (*notes, *searcher.notes)
    return searcher
