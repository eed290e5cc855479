"""The small pictures that are compared: read once each as far as memory allows."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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
    """

    def __init__(self) -> None:
        self.unreadable: dict[str, str] = {}
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1)
        self._kept: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()

    def of(self, uris: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """(64, 64, 3) uint8 of each picture that can be read."""
        new = [u for u in dict.fromkeys(uris) if u not in self._kept and u not in self.unreadable]
        found = {uri: self._kept[uri] for uri in uris if uri in self._kept}
        for uri, made in zip(new, self._threads.map(_read, new), strict=True):
            if isinstance(made, SourceError):
                self.unreadable[uri] = made.message
            else:
                found[uri] = made
        for uri, made in found.items():
            self._kept[uri] = made
            self._kept.move_to_end(uri)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found


def _read(uri: str) -> NDArray[np.uint8] | SourceError:
    try:
        # Large JPEGs are decoded smaller, and stay larger than four times the thumbnail.
        return thumbnail(decode(read_bytes(uri), least_side=4 * SIDE))
    except SourceError as error:
        return error


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
        block = uris[start : start + _PAIRS]
        found = pictures.of([uri for pair in block for uri in pair])
        rows = [row for row, pair in enumerate(block) if pair[0] in found and pair[1] in found]
        if rows:
            one, other = (np.stack([found[block[row][side]] for row in rows]) for side in (0, 1))
            at = start + np.array(rows)
            known[at] = True
            same[at] = agreement(one, other).same
        progress.advance(min(_PAIRS, len(uris) - start))
    progress.stop()
    return same, known
