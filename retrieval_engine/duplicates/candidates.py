"""Which pictures may be one: those whose vectors are near. No picture is looked at here."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import FeatureMissing
from retrieval_engine.metrics.candidates import reaching
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Modality
from retrieval_engine.store import Gallery, Store

_ROWS = 2048

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Neighbours(Protocol):
    """What finds the nearest images of one in a store, such as an index over it."""

    def search(self, queries: Floats, k: int) -> tuple[Floats, Ints]:
        """(q, k) scores, best first, and rows of the store, -1 where there are fewer."""


def vector_feature(store: Store) -> str:
    """The image feature that candidates are found by: `pooled` where it is stored, else `itc`.

    Raises:
        FeatureMissing: the store has neither.
    """
    known = store.features(Modality.IMAGES)
    for name in ("pooled", "itc"):
        if name in known:
            return name
    raise FeatureMissing(
        f"{store.path} has no image vectors; it has: {', '.join(known) or 'none'}",
        hint="encode again with `EncodeOptions(features=('itc',))`",
    )


def near_pairs(
    gallery: Gallery,
    feature: str,
    *,
    neighbours: int,
    least: float,
    index: Neighbours | None = None,
    of: Ints | None = None,
    progress: Progress | None = None,
) -> Ints:
    """Pairs of images of one gallery that lie near each other.

    Args:
        gallery: the images. Equal bytes are one row of the store: the first image stands for all.
        feature: what is compared; an image's several vectors end to end.
        neighbours: at most so many of each image's nearest.
        least: cosine from which two are near.
        index: finds them by one vector of `feature` an image; None compares all, block by block.
        of: (m,) numbers of the images whose nearest are wanted; None wants those of all.
        progress: told about images.

    Returns:
        (p, 2) numbers, the lower first, no pair twice, in order.
    """
    progress = progress or Silent()
    stored, first = np.unique(gallery.image_rows, return_index=True)
    asked = stored if of is None else np.unique(gallery.image_rows[of])
    asked_first = first[np.searchsorted(stored, asked)]
    found = [np.empty((0, 2), np.int64)]
    progress.start("comparing vectors", len(asked))
    for start, ours in _rows(gallery.store, feature, asked):
        if index is None:
            blocks = _rows(gallery.store, feature, stored)
            one, near, _ = _nearest(ours, blocks, neighbours + 1, least)
            numbers = first[near]
        else:
            one, rows = _by_index(index, ours, neighbours + 1, least)
            place = np.searchsorted(stored, rows).clip(max=len(stored) - 1)
            known = stored[place] == rows
            one, numbers = one[known], first[place[known]]
        found.append(np.stack([asked_first[one + start], numbers], axis=1))
        progress.advance(len(ours))
    progress.stop()
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredPictures:
    """Some images of a store.

    Attributes:
        store: where their vectors are.
        rows: (n,) rows of it.
        uris: (n,) where their bytes are.
    """

    store: Store
    rows: Ints
    uris: Sequence[str]

    @classmethod
    def of(cls, gallery: Gallery) -> "StoredPictures":
        """All of a gallery."""
        return cls(store=gallery.store, rows=gallery.image_rows, uris=gallery.uris)


def cross_pairs(
    ours: StoredPictures, theirs: StoredPictures, feature: str, *, neighbours: int, least: float
) -> tuple[Ints, Floats]:
    """Pairs of an image of one set and a near one of another, the nearest ones of each.

    Returns:
        (p, 2) numbers, in that order; (p,) cosines.
    """
    pairs, scores = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for start, block in _rows(ours.store, feature, ours.rows):
        blocks = _rows(theirs.store, feature, theirs.rows)
        of, near, score = _nearest(block, blocks, neighbours, least)
        pairs.append(np.stack([of + start, near], axis=1))
        scores.append(score)
    return np.concatenate(pairs), np.concatenate(scores)


def unit(rows: NDArray[Any]) -> Floats:
    """(b, …) -> (b, d) float32 of length one; an image's several vectors end to end."""
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:])).astype(np.float32)
    length = np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-12)
    made: Floats = (flat / length).astype(np.float32)
    return made


def _rows(store: Store, feature: str, rows: Ints) -> Iterator[tuple[int, Floats]]:
    for start in range(0, len(rows), _ROWS):
        block = store.read(Modality.IMAGES, feature, rows[start : start + _ROWS])
        yield start, unit(block)


def _nearest(
    ours: Floats, blocks: Iterable[tuple[int, Floats]], k: int, least: float
) -> tuple[Ints, Ints, Floats]:
    """Rows, numbers and scores of at most k near ones of each; memory is that of one block."""
    kept = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    floor = np.full(len(ours), least, np.float32)  # what the next one must reach
    for start, block in blocks:
        scores = ours @ block.T
        rows, columns = reaching(scores, k, floor)
        of = np.concatenate([kept[0], rows])
        near = np.concatenate([kept[1], columns + start])
        score = np.concatenate([kept[2], scores[rows, columns]])
        order = np.lexsort((near, -score, of))
        place = np.arange(len(of)) - np.searchsorted(of[order], of[order])
        kept = (of[order[place < k]], near[order[place < k]], score[order[place < k]])
        last = order[place == k - 1]
        floor[of[last]] = score[last]
    return kept


def _by_index(index: Neighbours, ours: Floats, k: int, least: float) -> tuple[Ints, Ints]:
    scores, numbers = index.search(ours, k)
    of, places = np.nonzero((numbers >= 0) & (scores >= least))
    return of, numbers[of, places]
