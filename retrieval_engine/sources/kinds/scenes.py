"""`scenes:N?seed=S[&captions=detailed][&size=PIXELS]`: N pictures drawn from seed S.

Picture i of a seed does not depend on N. Train on other seeds than you evaluate on.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.records import Caption, Item, Json
from retrieval_engine.sources.scenes import truth
from retrieval_engine.sources.scenes.describing import captions
from retrieval_engine.sources.scenes.draw import COLOUR_LABELS, KIND_LABELS, SIZE, draw, draw_labels
from retrieval_engine.sources.scenes.world import World, meta, world_at

OPTIONS = ("seed", "captions", "size")
SMALLEST, LARGEST = 16, 2048  # pixels


def open_source(argument: str, options: Mapping[str, str]) -> "Scenes":
    """The drawn scenes.

    Args:
        argument: how many.
        options: `seed` (default 0), `captions` (`all` or `detailed`), `size` (pixels).

    Raises:
        UsageError: no number, or an unknown or malformed option.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise UsageError(f"scenes has no option {unknown[0]!r}; it has {', '.join(OPTIONS)}")
    wanted = options.get("captions", "all")
    if wanted not in ("all", "detailed"):
        raise UsageError(f"captions={wanted} is not allowed; use captions=all or captions=detailed")
    return Scenes(
        _number("the number of scenes", argument, 0, 2**53),
        seed=_number("seed", options.get("seed", "0"), 0, 2**63),
        size=_number("size", options.get("size", str(SIZE)), SMALLEST, LARGEST),
        detailed=wanted == "detailed",
    )


def read_bytes(uri: str) -> bytes:
    """Draw the scene `scenes:SEED/INDEX[/SIZE]` as a binary PPM (P6)."""
    world, size = _parse(uri)
    image = draw(world, size)
    return b"P6\n%d %d\n255\n" % image.size + image.tobytes()


def _number(what: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise UsageError(
            f"{what} is {text!r}; it must be a whole number from {least} to {most}",
            hint="for example scenes:1000?seed=7",
        )
    return int(text)


def _parse(uri: str) -> tuple[World, int]:
    parts = uri.removeprefix("scenes:").split("/")
    if len(parts) not in (2, 3) or not all(p.isascii() and p.isdigit() for p in parts):
        raise SourceError(f"{uri!r} is no scene", hint="a scene is named scenes:SEED/INDEX")
    size = int(parts[2]) if len(parts) == 3 else SIZE
    if not SMALLEST <= size <= LARGEST:
        raise SourceError(f"{uri!r} has {size} pixels; allowed are {SMALLEST} to {LARGEST}")
    return world_at(int(parts[0]), int(parts[1])), size


class Scenes:
    """A source of drawn scenes; it is `Labelled` too."""

    label_names: Mapping[str, tuple[str, ...]] = {"kind": KIND_LABELS, "colour": COLOUR_LABELS}

    def __init__(self, n: int, *, seed: int, size: int, detailed: bool) -> None:
        self._n, self._seed, self._size, self._detailed = n, seed, size, detailed
        self.notes: list[str] = []
        self.is_partial = True  # a seed has no last scene

    @property
    def name(self) -> str:
        """`scenes:SEED`, with the size where it is not the usual one."""
        return f"scenes:{self._seed}" + (f"?size={self._size}" if self._size != SIZE else "")

    def count(self) -> int:
        """The number asked for."""
        return self._n

    def items(self) -> Iterator[Item]:
        """Every scene; nothing is drawn before its bytes are read."""
        return (self.item(index) for index in range(self._n))

    def item(self, index: int) -> Item:
        """The scene with this number."""
        world = world_at(self._seed, index)
        scene = f"scene-{self._seed}-{index:06d}"
        texts = list(enumerate(captions(world)))[-1 if self._detailed else 0 :]
        sized = f"/{self._size}" if self._size != SIZE else ""
        return Item(
            id=scene,
            uri=f"scenes:{self._seed}/{index}{sized}",
            captions=tuple(Caption(id=f"{scene}#{i}", text=text) for i, text in texts),
            meta=meta(world),
        )

    def patch_labels(self, item: Item, grid: int) -> dict[str, NDArray[np.uint8]]:
        """See `Labelled`."""
        world, _ = _parse(item.uri)
        kinds, colours = draw_labels(world, grid * 8, 8)
        return {"kind": kinds, "colour": colours}

    def facts(self, meta: Mapping[str, Json], *, mirrored: bool = False) -> frozenset[str]:
        """See `Labelled`."""
        return truth.facts(meta, mirrored=mirrored)

    def claims(self, text: str) -> frozenset[str] | None:
        """See `Labelled`."""
        claims = truth.parse(text)
        return None if claims.unknown or not claims.atoms else claims.atoms
