"""The small pictures that are compared: read once each as far as memory allows."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.duplicates.proof import SIDE, agreement, thumbnail
from retrieval_engine.errors import SourceError
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode

_KEPT = 8192  # thumbnails of 12 kB: 100 MB
_PAIRS = 64  # laid over each other at once

Ints = NDArray[np.int64]


class Thumbnails:
    """Thumbnails by uri; the least lately asked for are forgotten first.

    Attributes:
        unreadable: uris whose bytes cannot be had or are no picture, with the reason.
        read: number of pictures decoded, those read again included.
    """

    def __init__(self) -> None:
        self.unreadable: dict[str, str] = {}
        self.read = 0
        self._kept: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()

    def get(self, uri: str) -> NDArray[np.uint8] | None:
        """(64, 64, 3) uint8, or None where it cannot be read."""
        if uri in self.unreadable:
            return None
        if uri in self._kept:
            self._kept.move_to_end(uri)
            return self._kept[uri]
        try:
            # Large JPEGs are decoded smaller, and stay larger than four times the thumbnail.
            made = thumbnail(decode(read_bytes(uri), least_side=4 * SIDE))
        except SourceError as error:
            self.unreadable[uri] = error.message
            return None
        self.read += 1
        self._kept[uri] = made
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return made


def proven(
    uris: Sequence[tuple[str, str]],
    pictures: Thumbnails,
    progress: Progress | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pairs of pictures are one picture.

    Args:
        uris: p pairs; those of one picture side by side are read once.
        pictures: reads and keeps them.
        progress: told about pairs.

    Returns:
        (p,) whether they are one, and (p,) whether both could be read at all.
    """
    progress = progress or Silent()
    same, known = np.zeros(len(uris), bool), np.zeros(len(uris), bool)
    progress.start("comparing pictures", len(uris))
    for start in range(0, len(uris), _PAIRS):
        rows, one, other = [], [], []
        for row, (left, right) in enumerate(uris[start : start + _PAIRS], start):
            mine, theirs = pictures.get(left), pictures.get(right)
            if mine is not None and theirs is not None:
                rows.append(row)
                one.append(mine)
                other.append(theirs)
        known[rows] = True
        if rows:
            same[rows] = agreement(np.stack(one), np.stack(other)).same
        progress.advance(min(_PAIRS, len(uris) - start))
    progress.stop()
    return same, known
