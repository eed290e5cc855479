"""Whether two pictures are one: the pixels, laid over each other.

Vectors say which pictures are of like things; two photographs of one football match are. A copy is
told by its pixels alone, whatever was done to it: another size or shape, another encoding, a strip
cut off at any edge, another brightness or contrast. So one picture is laid over the other by the
four numbers that such a cut has (where it begins and how far it goes, across and down) and two of
brightness, found by Gauss-Newton on small grey pictures from coarse to fine (Lucas and Kanade,
IJCAI 1981; the brightness terms as in Baker and Matthews, IJCV 2004, part 3). Then every part of
the overlap must agree, not only the whole: the same room with another person in it is another
picture.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64
"""Pixels of a thumbnail's edge."""
_COARSE, _FINE = (16, 6), (32, 5)  # edge, steps of Gauss-Newton
_STARTS = (
    (1.0, 0.0),
    (0.9, 0.05),
    (1.11, -0.055),
)  # the whole, a cut of five per cent, its reverse
_LEAST_SHARE, _MOST_SHARE = 0.82, 1.22  # of an edge that a cut leaves; beyond lies another picture
_BLACK, _WHITE = 3.0, 252.0  # what has been brightened ends here and says no more
_FLAT = 3.0  # standard deviation, in levels, below which a picture shows nothing
_CELLS = 8
_UNLIKE = 0.4  # correlation of 8x8 pictures, as they are, below which no cut is tried
_FAR = 0.55  # correlation of the coarse pictures below which no other start is tried
_CLEAR = 0.98  # correlation of the coarse pictures above which no other start is tried
_HOPELESS = 0.75  # correlation of the coarse pictures below which no fine ones are looked at

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What laying pictures over each other found, for p pairs.

    Attributes:
        whole: (p,) correlation of brightness over the overlap.
        edges: (p,) correlation of its gradients.
        worst: (p,) largest difference of any of 8x8 parts, over the contrast of the picture.
        colour: (p,) largest difference of colour of any part, in levels of 255.
        same: (p,) bool: these are one picture.
    """

    whole: Floats
    edges: Floats
    worst: Floats
    colour: Floats
    same: NDArray[np.bool_]


def thumbnail(picture: Image.Image) -> NDArray[np.uint8]:
    """(64, 64, 3) uint8 YCbCr of an RGB picture, squashed to a square."""
    # Bilinear, whose support is twice the step: what is finer than that would differ with the cut.
    small = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small.convert("YCbCr"))


def agreement(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Agreement:
    """Lay pictures over each other and see what is left.

    Args:
        first: (p, 64, 64, 3) thumbnails.
        second: (p, 64, 64, 3), each to be compared with the one in the same place.
    """
    one, other = first.astype(np.float32), second.astype(np.float32)
    count = len(one)
    found = Agreement(
        whole=np.zeros(count, np.float32),
        edges=np.zeros(count, np.float32),
        worst=np.full(count, np.inf, np.float32),
        colour=np.full(count, np.inf, np.float32),
        same=np.zeros(count, bool),
    )
    deviation = [p[..., 0].std(axis=(1, 2)) for p in (one, other)]
    flat = [d < _FLAT for d in deviation]
    apart = np.abs(one.mean(axis=(1, 2)) - other.mean(axis=(1, 2))).max(-1)
    found.same[flat[0] & flat[1]] = apart[flat[0] & flat[1]] < _FLAT
    tiny = [_shrunk(p[..., 0], _COARSE[0] // 2) for p in (one, other)]
    alike = _correlation(tiny[0], tiny[1], np.ones_like(tiny[0])) > _UNLIKE
    rest = np.flatnonzero(alike & ~(flat[0] | flat[1]))
    if not len(rest):
        return found
    cut, fit = _coarse(one[rest, :, :, 0], other[rest, :, :, 0])
    hopeful = fit > _HOPELESS
    rest, cut = rest[hopeful], cut[hopeful]
    if len(rest):
        side, steps = _FINE
        grey = [_shrunk(p[rest, :, :, 0], side) for p in (one, other)]
        cut, _ = _align(grey[0], grey[1], cut, steps)
        _judge(one[rest], other[rest], cut, rest, found)
    return found


def _coarse(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """(p, 4) best cut of several starts, and (p,) correlation under it."""
    side, steps = _COARSE
    small = [_shrunk(p, side) for p in (one, other)]
    best = np.zeros((len(one), 4), np.float32)
    fit = np.full(len(one), -1, np.float32)
    for scale, shift in _STARTS:
        # At a sixteenth of the edge a cut of five per cent is less than a pixel: what fits badly
        # after the first start fits nowhere.
        rest = np.flatnonzero((fit < _CLEAR) & ((fit > _FAR) | (fit == -1)))
        if not len(rest):
            break
        start = np.tile(np.array([scale, shift, scale, shift], np.float32), (len(rest), 1))
        cut, found = _align(small[0][rest], small[1][rest], start, steps)
        better = found > fit[rest]
        best[rest[better]], fit[rest[better]] = cut[better], found[better]
    return best, fit


def _align(one: Floats, other: Floats, cut: Floats, steps: int) -> tuple[Floats, Floats]:
    """Gauss-Newton over the cut and brightness of `one` that give `other`.

    Args:
        one: (p, s, s) grey.
        other: (p, s, s) grey.
        cut: (p, 4) scale and shift across, scale and shift down, in parts of the edge.
        steps: how often.

    Returns:
        (p, 4) the cut, and (p,) the correlation under it.
    """
    side = one.shape[1]
    at = (np.arange(side, dtype=np.float32) + 0.5) / side
    down = np.gradient(one, axis=1) * side
    across = np.gradient(one, axis=2) * side
    fit = np.full(len(one), -1, np.float32)
    kept = cut.copy()
    for step in range(steps + 1):
        seen, inside = _cut_out(one, cut)
        weight = inside * _unclipped(seen, other)
        correlation = _correlation(seen, other, weight)
        better = correlation > fit
        kept[better], fit[better] = cut[better], correlation[better]
        if step == steps:
            break
        gx, gy = _cut_out(across, cut)[0], _cut_out(down, cut)[0]
        gain = _gain(seen, other, weight)
        columns = np.stack(
            [
                *(gx * at[None, None, :], gx, gy * at[None, :, None], gy),
                *(seen, np.ones_like(seen)),
            ],
            axis=-1,
        ).reshape(len(one), -1, 6)
        columns[..., :4] *= gain[:, None, None]
        weights = weight.reshape(len(one), -1, 1)
        left = np.matmul((columns * weights).transpose(0, 2, 1), columns)
        damping = 1e-3 / 6 * np.trace(left, axis1=1, axis2=2)
        left += np.eye(6, dtype=np.float32) * damping[:, None, None]
        # The picture as it is seen, times its gain, is to become the other one.
        mean = _mean(other, weight) - gain * _mean(seen, weight)
        missing = other - gain[:, None, None] * seen - mean[:, None, None]
        right = np.matmul((columns * weights).transpose(0, 2, 1), missing.reshape(len(one), -1, 1))
        moved = np.linalg.solve(left.astype(np.float64), right.astype(np.float64))[..., 0]
        cut = (cut + np.clip(moved[:, :4], -0.1, 0.1)).astype(np.float32)
        cut[:, [0, 2]] = cut[:, [0, 2]].clip(_LEAST_SHARE, _MOST_SHARE)
        cut[:, [1, 3]] = cut[:, [1, 3]].clip(1 - _MOST_SHARE, 1 - _LEAST_SHARE)
    return kept, fit


def _cut_out(pictures: Floats, cut: Floats) -> tuple[Floats, Floats]:
    """(p, s, s) pictures as they look through a cut, bilinear, and where they are seen at all."""
    side = pictures.shape[1]
    at = (np.arange(side, dtype=np.float32) + 0.5) / side
    columns = (at * cut[:, :1] + cut[:, 1:2]) * side - 0.5  # (p, s)
    rows = (at * cut[:, 2:3] + cut[:, 3:4]) * side - 0.5
    seen = np.matmul(_weights(rows, side), pictures)
    seen = np.matmul(seen, _weights(columns, side).transpose(0, 2, 1))
    inside = [(x > -0.5) & (x < side - 0.5) for x in (rows, columns)]
    return seen, (inside[0][:, :, None] & inside[1][:, None, :]).astype(np.float32)


def _weights(places: Floats, side: int) -> Floats:
    """(p, s, s) how much of each source row is in each row of the result."""
    apart = np.abs(places.clip(0, side - 1)[:, :, None] - np.arange(side, dtype=np.float32))
    weights: Floats = (1 - apart).clip(0).astype(np.float32)
    return weights


def _shrunk(pictures: Floats, side: int) -> Floats:
    by = pictures.shape[1] // side
    small: Floats = pictures.reshape(len(pictures), side, by, side, by).mean(axis=(2, 4))
    return small


def _unclipped(one: Floats, other: Floats) -> Floats:
    clear = (one > _BLACK) & (one < _WHITE) & (other > _BLACK) & (other < _WHITE)
    return clear.astype(np.float32)


def _mean(values: Floats, weight: Floats) -> Floats:
    mean: Floats = (values * weight).sum(axis=(1, 2)) / weight.sum(axis=(1, 2)).clip(1)
    return mean


def _moments(one: Floats, other: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """(p,) covariance and both variances."""
    a = one - _mean(one, weight)[:, None, None]
    b = other - _mean(other, weight)[:, None, None]
    return _mean(a * b, weight), _mean(a * a, weight), _mean(b * b, weight)


def _correlation(one: Floats, other: Floats, weight: Floats) -> Floats:
    both, own, others = _moments(one, other, weight)
    found: Floats = both / np.sqrt(own * others).clip(1e-3)
    return np.where(weight.mean(axis=(1, 2)) < 0.2, np.float32(-1), found)


def _gain(one: Floats, other: Floats, weight: Floats) -> Floats:
    both, own, _ = _moments(one, other, weight)
    gain: Floats = (both / own.clip(1e-3)).clip(0.3, 3)
    return gain


def _judge(
    one: Floats, other: Floats, cut: Floats, rest: NDArray[np.int64], found: Agreement
) -> None:
    """Fill in what the pairs `rest` come to under their cuts."""
    seen, inside = _cut_out(one[..., 0], cut)
    grey = other[..., 0]
    weight = inside * _unclipped(seen, grey)
    gain = _gain(seen, grey, weight)[:, None, None]
    shown = gain * (seen - _mean(seen, weight)[:, None, None])
    shown += _mean(grey, weight)[:, None, None]
    found.whole[rest] = _correlation(seen, grey, weight)
    found.edges[rest] = _edges(shown, grey, weight)
    contrast = np.sqrt(_moments(seen, grey, weight)[2]).clip(_FLAT)
    difference = np.sqrt(_parts((shown - grey) ** 2, weight))
    found.worst[rest] = difference.max(axis=(1, 2)) / contrast
    apart = np.zeros(len(rest), np.float32)
    chroma = [np.abs(p[..., 1:] - 128).mean(axis=(1, 2, 3)) for p in (one, other)]
    for channel in (1, 2):
        colour = gain * (_cut_out(one[..., channel], cut)[0] - 128)
        parts = np.abs(_parts(colour - (other[..., channel] - 128), weight))
        apart = np.maximum(apart, parts.max(axis=(1, 2)))
    colourless = (chroma[0] < 2) | (chroma[1] < 2)
    found.colour[rest] = np.where(colourless, 0, apart)
    found.same[rest] = is_same(
        found.whole[rest], found.edges[rest], found.worst[rest], found.colour[rest]
    )


def is_same(whole: Any, edges: Any, worst: Any, colour: Any) -> NDArray[np.bool_]:
    """(p,) the verdict."""
    verdict: NDArray[np.bool_] = (whole > 0.92) & (edges > 0.78) & (worst < 1.0) & (colour < 45)
    return verdict


def _edges(one: Floats, other: Floats, weight: Floats) -> Floats:
    """(p,) correlation of gradients over what is seen of both."""
    mask = weight[:, 1:-1, 1:-1]
    for rows, columns in ((slice(2, None), slice(1, -1)), (slice(None, -2), slice(1, -1))):
        mask = mask * weight[:, rows, columns] * weight[:, columns, rows]
    sums = np.zeros((3, len(one)))
    for axis in (1, 2):
        a, b = (np.gradient(p, axis=axis)[:, 1:-1, 1:-1] for p in (one, other))
        sums += [(product * mask).sum(axis=(1, 2)) for product in (a * b, a * a, b * b)]
    found: Floats = (sums[0] / np.sqrt(sums[1] * sums[2]).clip(1e-3)).astype(np.float32)
    return found


def _parts(values: Floats, weight: Floats) -> Floats:
    """(p, 8, 8) weighted means of parts; 0 where hardly anything of a part is seen."""
    shape = (len(values), _CELLS, SIDE // _CELLS, _CELLS, SIDE // _CELLS)
    seen = weight.reshape(shape).sum(axis=(2, 4))
    total = (values * weight).reshape(shape).sum(axis=(2, 4))
    parts: Floats = np.where(seen < SIDE // _CELLS, 0, total / seen.clip(1))
    return parts
