"""A pen that draws the same shapes as paint, as an outline, or as ids.

A subject is drawn once in code and three times on the picture's way: with a pen that grows every
shape by a hair (the outline that keeps a white cat visible on snow), with one that paints, and with
one that writes the thing's id into a mask. Picture and labels therefore cannot differ.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

from PIL import ImageDraw

RGB: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]
Ink: TypeAlias = "Callable[[RGB], RGB | int]"

PALETTE: dict[str, RGB] = {
    "red": (220, 42, 40),
    "orange": (242, 142, 40),
    "yellow": (250, 214, 56),
    "green": (46, 154, 70),
    "blue": (46, 98, 214),
    "purple": (134, 66, 180),
    "pink": (246, 134, 182),
    "brown": (128, 78, 44),
    "black": (42, 42, 50),
    "white": (248, 248, 246),
    "gray": (142, 146, 154),
}


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """`a` with this share of `b` stirred in."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def darker(colour: RGB, share: float = 0.25) -> RGB:
    """A shade of the colour."""
    return mix(colour, (0, 0, 0), share)


def lighter(colour: RGB, share: float = 0.3) -> RGB:
    """A tint of the colour."""
    return mix(colour, (255, 255, 255), share)


def brightness(colour: RGB) -> float:
    """Perceived brightness, 0 to 255."""
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


@lru_cache(maxsize=512)
def _smooth(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """A closed Catmull-Rom curve through the points, five steps between two."""
    curve = []
    n = len(points)
    for i in range(n):
        p, q, r, s = (points[(i + k) % n] for k in (-1, 0, 1, 2))
        for step in range(5):
            t = step / 5
            a = -0.5 * t**3 + t**2 - 0.5 * t
            b = 1.5 * t**3 - 2.5 * t**2 + 1
            c = -1.5 * t**3 + 2 * t**2 + 0.5 * t
            d = 0.5 * t**3 - 0.5 * t**2
            curve.append(
                (
                    a * p[0] + b * q[0] + c * r[0] + d * s[0],
                    a * p[1] + b * q[1] + c * r[1] + d * s[1],
                )
            )
    return tuple(curve)


class Pen:
    """Draws in the frame of one thing: x grows the way it faces, y upwards, its height is 1.

    Args:
        canvas: what to draw on.
        ink: makes of a colour what is written.
        grow: pixels by which every shape is enlarged.
        frame: (x, y, unit, sign): pixels of the thing's foot, of its height, and -1 where it
            faces left.
    """

    __slots__ = ("canvas", "grow", "ink", "sign", "unit", "x", "y")

    def __init__(
        self,
        canvas: ImageDraw.ImageDraw,
        ink: Ink,
        *,
        grow: int = 0,
        frame: tuple[float, float, float, int],
    ) -> None:
        self.canvas, self.ink, self.grow = canvas, ink, grow
        self.x, self.y, self.unit, self.sign = frame

    def _pixels(self, points: Sequence[Point]) -> list[tuple[int, int]]:
        # Whole pixels: how a fraction is rasterised is not the same on all machines.
        x, y, unit, step = self.x, self.y, self.unit, self.sign * self.unit
        return [(round(x + px * step), round(y - py * unit)) for px, py in points]

    def poly(self, colour: RGB, *points: Point) -> None:
        """A filled polygon."""
        pixels, ink = self._pixels(points), self.ink(colour)
        self.canvas.polygon(pixels, fill=ink)
        if self.grow:
            self.canvas.line([*pixels, pixels[0]], fill=ink, width=2 * self.grow)
            for x, y in pixels:
                self._disc(x, y, self.grow, self.grow, ink)

    def blob(self, colour: RGB, *points: Point) -> None:
        """A filled smooth shape through the points."""
        self.poly(colour, *_smooth(points))

    def oval(self, colour: RGB, x: float, y: float, rx: float, ry: float | None = None) -> None:
        """A filled ellipse around (x, y); a circle without `ry`."""
        ry = rx if ry is None else ry
        [(cx, cy)] = self._pixels([(x, y)])
        width, height = round(rx * self.unit), round(ry * self.unit)
        self._disc(cx, cy, width + self.grow, height + self.grow, self.ink(colour))

    def _disc(self, x: int, y: int, rx: int, ry: int, ink: RGB | int) -> None:
        self.canvas.ellipse((x - rx, y - ry, x + rx, y + ry), fill=ink)

    def box(self, colour: RGB, x0: float, y0: float, x1: float, y1: float) -> None:
        """A filled rectangle."""
        (ax, ay), (bx, by) = self._pixels([(x0, y0), (x1, y1)])
        g = self.grow
        corners = (min(ax, bx) - g, min(ay, by) - g, max(ax, bx) + g, max(ay, by) + g)
        self.canvas.rectangle(corners, fill=self.ink(colour))

    def round_box(
        self, colour: RGB, x0: float, y0: float, x1: float, y1: float, *, radius: float
    ) -> None:
        """A filled rectangle with round corners."""
        (ax, ay), (bx, by) = self._pixels([(x0, y0), (x1, y1)])
        g = self.grow
        corners = (min(ax, bx) - g, min(ay, by) - g, max(ax, bx) + g, max(ay, by) + g)
        ink = self.ink(colour)
        self.canvas.rounded_rectangle(corners, radius=round(radius * self.unit) + g, fill=ink)

    def line(self, colour: RGB, width: float, *points: Point) -> None:
        """A stroke with round ends and corners."""
        pixels, ink = self._pixels(points), self.ink(colour)
        thick = max(1, round(width * self.unit)) + 2 * self.grow
        self.canvas.line(pixels, fill=ink, width=thick)
        r = (thick - 1) // 2
        if r > 0:
            for x, y in pixels:
                self._disc(x, y, r, r, ink)

    def wedge(
        self, colour: RGB, x: float, y: float, rx: float, ry: float, angles: tuple[int, int]
    ) -> None:
        """A slice of an ellipse between two angles in degrees, counter-clockwise from the front."""
        self.poly(colour, (x, y), *_arc(x, y, rx, ry, angles))

    def arc(
        self, colour: RGB, width: float, centre: Point, radii: Point, angles: tuple[int, int]
    ) -> None:
        """A stroke along an ellipse between two angles in degrees."""
        self.line(colour, width, *_arc(*centre, *radii, angles))

    def ring(self, colour: RGB, x: float, y: float, radius: float, width: float) -> None:
        """A circle's rim: the stroke lies inside the radius."""
        [(cx, cy)] = self._pixels([(x, y)])
        r, thick = round(radius * self.unit), max(1, round(width * self.unit))
        g = self.grow
        self.canvas.ellipse(
            (cx - r - g, cy - r - g, cx + r + g, cy + r + g),
            outline=self.ink(colour),
            width=thick + 2 * g,
        )


def _arc(x: float, y: float, rx: float, ry: float, angles: tuple[int, int]) -> list[Point]:
    first, last = angles
    steps = max(2, (last - first) // 12)
    turns = [math.radians(first + (last - first) * i / steps) for i in range(steps + 1)]
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]
