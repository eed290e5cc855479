"""Copies of one picture as a group, the best of them first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval_engine.errors import SourceError
from retrieval_engine.records import Json
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode

_LOOKED_AT = 1024  # pixels of the longest edge at which sharpness is compared
_AS_SHARP = 0.85  # of the sharpest one's gradients: differences of encoding, not of detail

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One picture of a group.

    Attributes:
        number: of the item in the gallery.
        item_id: its id.
        source: what the id is unique within.
        uri: where its bytes are.
        split: of the item.
        width: pixels; 0 where the picture cannot be read.
        height: pixels.
        size_bytes: of the file.
        sharpness: mean gradient over contrast, all of a group at one size; more is sharper.
    """

    number: int
    item_id: str
    source: str
    uri: str
    split: str
    width: int = 0
    height: int = 0
    size_bytes: int = 0
    sharpness: float = 0.0

    def to_json(self) -> dict[str, Json]:
        """As JSON values."""
        return {
            "item_id": self.item_id,
            "source": self.source,
            "uri": self.uri,
            "split": self.split,
            "width": self.width,
            "height": self.height,
            "size_bytes": self.size_bytes,
            "sharpness": round(self.sharpness, 4),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateGroup:
    """Pictures that are one.

    Attributes:
        members: the best first; the others in the gallery's order.
    """

    members: tuple[Copy, ...]

    @property
    def best(self) -> Copy:
        """The one to keep."""
        return self.members[0]

    def to_json(self) -> dict[str, Json]:
        """The best one, and what may go."""
        return {
            "best": self.best.to_json(),
            "others": [member.to_json() for member in self.members[1:]],
        }


def joined(count: int, pairs: Ints) -> list[list[int]]:
    """Numbers that pairs join, directly or through others: groups of two or more, in order."""
    parent = np.arange(count)

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = int(parent[number])
        return number

    for one, other in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for number in np.unique(pairs).tolist():
        groups.setdefault(root(number), []).append(number)
    return [groups[first] for first in sorted(groups)]


def best_first(copies: Sequence[Copy]) -> tuple[Copy, ...]:
    """The largest of the sharp ones in front; of equal ones the larger file, then the first.

    A picture that was made larger has many pixels and no more to see, and one that is blurred has
    as many as ever: so all are looked at in one size, and what is less sharp there than the
    sharpest cannot be the best, however large it is.

    Args:
        copies: of one group, as `looked_at` gives them.
    """
    sharpest = max(copy.sharpness for copy in copies)

    def rank(copy: Copy) -> tuple[bool, int, int, int]:
        sharp = copy.sharpness >= _AS_SHARP * sharpest
        return (not sharp, -copy.width * copy.height, -copy.size_bytes, copy.number)

    best = min(copies, key=rank)
    return (best, *(copy for copy in copies if copy is not best))


def looked_at(copies: Sequence[Copy]) -> list[Copy]:
    """The pictures of a group with their sizes and how sharp each is in the size of the largest.

    One picture is held at a time. One that cannot be read keeps a width of 0.
    """
    found, sizes = [], []
    for copy in copies:
        try:
            data = read_bytes(copy.uri)
            picture = decode(data)
        except SourceError:
            continue
        sizes.append(picture.size)
        found.append((copy, len(data), picture.size))
    if not sizes:
        return list(copies)
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    by = min(1.0, _LOOKED_AT / max(width, height))
    common = (max(1, round(width * by)), max(1, round(height * by)))
    seen = {}
    for copy, size_bytes, (own_width, own_height) in found:
        sharpness = _sharpness(decode(read_bytes(copy.uri)), common)
        seen[copy.number] = (own_width, own_height, size_bytes, sharpness)
    return [_with(copy, *seen[copy.number]) if copy.number in seen else copy for copy in copies]


def _with(copy: Copy, width: int, height: int, size_bytes: int, sharpness: float) -> Copy:
    return replace(copy, width=width, height=height, size_bytes=size_bytes, sharpness=sharpness)


def _sharpness(picture: Image.Image, size: tuple[int, int]) -> float:
    grey = picture.convert("L").resize(size, Image.Resampling.BICUBIC)
    levels = np.asarray(grey, np.float32)
    contrast = float(levels.std())
    if contrast < 1 or min(levels.shape) < 2:
        return 0.0
    down, across = np.diff(levels, axis=0), np.diff(levels, axis=1)
    return float((np.abs(down).mean() + np.abs(across).mean()) / contrast)
