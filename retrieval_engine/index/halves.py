"""Half-precision rows as float32, a piece that stays in a core's cache at a time."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 19  # numbers
_SIGN_AND_NUMBER = np.array(0x8FFFE000, np.uint32).view(np.int32)


def in_pieces(
    rows: NDArray[np.floating],
) -> Iterator[tuple[int, NDArray[np.float32], np.float32]]:
    """Pieces of (n, d) rows, in order: the first row, (p, d) float32, and the largest squared length.

    A piece of other precision than float32 is overwritten by the next.
    """
    n, d = rows.shape
    step = max(1, _PIECE // d)
    memory = np.empty((0 if rows.dtype == np.float32 else min(n, step), d), np.float32)
    for first in range(0, n, step):
        given = part = rows[first : first + step]
        if given.dtype != np.float32:
            part = memory[: len(given)]
            widen(given, part)
        squared = np.vecdot(part, part).max()
        if given.dtype == np.float16 and not squared < 2.0**32:  # infinite, NaN, or very long
            part[...] = given
            squared = np.vecdot(part, part).max()
        yield first, part, squared


def widen(rows: NDArray[np.floating], out: NDArray[np.float32]) -> None:
    """Write finite numbers as float32; infinity and NaN of half precision become +-65536 and more.

    A half's exponent and fraction in the places of a float's are the number less a factor of 2^112;
    NumPy takes five times as long.
    """
    if rows.dtype != np.float16:
        out[...] = rows
        return
    bits = out.view(np.int32)
    bits[...] = rows.view(np.int16)  # the sign goes along
    bits <<= 13
    bits &= _SIGN_AND_NUMBER
    out *= np.float32(2.0**112)
