"""A scene as a picture, and as labels for the patches of that picture."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from retrieval_engine.errors import ShapeError
from retrieval_engine.sources.scenes import animals, backdrops, objects, people, vehicles
from retrieval_engine.sources.scenes.cast import Thing
from retrieval_engine.sources.scenes.catalogue import KINDS
from retrieval_engine.sources.scenes.pen import PALETTE, RGB, Ink, Pen, brightness, darker, mix
from retrieval_engine.sources.scenes.vocabulary import COLOURS, Ground, Sky
from retrieval_engine.sources.scenes.world import World

SIZE = 192
OVERSAMPLED = 2
NOTHING = "nothing"
KIND_LABELS: tuple[str, ...] = (NOTHING, *KINDS)
COLOUR_LABELS: tuple[str, ...] = (NOTHING, *COLOURS)
LEAST_COVER = 0.25
RIM = 110  # the outline is this part of the picture

_LOOKS: dict[str, Callable[[Pen, Thing], None]] = {
    "dog": animals.dog,
    "cat": animals.cat,
    "horse": animals.horse,
    "cow": animals.cow,
    "sheep": animals.sheep,
    "duck": animals.duck,
    "bird": animals.bird,
    "fish": animals.fish,
    "man": people.man,
    "woman": people.woman,
    "boy": people.boy,
    "girl": people.girl,
    "car": vehicles.car,
    "bus": vehicles.bus,
    "truck": vehicles.truck,
    "bicycle": vehicles.bicycle,
    "boat": vehicles.boat,
    "airplane": vehicles.airplane,
    "balloon": vehicles.balloon,
    "tree": objects.tree,
    "house": objects.house,
    "bench": objects.bench,
    "umbrella": objects.umbrella,
    "flower": objects.flower,
    "ball": objects.ball,
    "kite": objects.kite,
    "snowman": objects.snowman,
}

_DIM: dict[Sky, tuple[RGB, float]] = {
    Sky.DAY: ((255, 255, 255), 0.0),
    Sky.CLOUDY: ((120, 126, 138), 0.07),
    Sky.SUNSET: ((150, 70, 60), 0.06),
    Sky.NIGHT: ((24, 28, 70), 0.1),
}


def draw(world: World, size: int = SIZE) -> Image.Image:
    """Paint a scene.

    Args:
        world: what to paint.
        size: edge of the square picture in pixels.

    Returns:
        An RGB picture, the same on every machine with this version of Pillow.
    """
    pixels = size * OVERSAMPLED
    image = backdrops.paint(world, pixels)
    canvas = ImageDraw.Draw(image)
    _shadows(canvas, world, pixels)
    tint, share = _DIM[world.sky]
    for i, thing in enumerate(world.things):
        rim = _rim(world, thing)
        frame = _frame(thing, pixels)
        _LOOKS[thing.kind](
            Pen(canvas, _always(rim), grow=max(1, round(pixels / RIM)), frame=frame), thing
        )
        _LOOKS[thing.kind](Pen(canvas, lambda c: mix(c, tint, share), frame=frame), thing)
        _strings(canvas, world, i, pixels, lambda c: c)
    _waterline(canvas, world, pixels)
    return image.reduce(OVERSAMPLED)


def _always(ink: RGB | int) -> Ink:
    return lambda _: ink


def _frame(thing: Thing, pixels: int) -> tuple[float, float, float, int]:
    return (
        thing.x * pixels,
        thing.base * pixels,
        thing.height * pixels,
        -1 if thing.left else 1,
    )


def _rim(world: World, thing: Thing) -> RGB:
    """Colour of the outline: dark, but light around a dark thing in the dark."""
    if world.sky is Sky.NIGHT and brightness(PALETTE[thing.colour]) < 95:
        return mix(PALETTE[thing.colour], (226, 230, 246), 0.62)
    return darker(mix(PALETTE[thing.colour], (30, 28, 40), 0.72), 0.1)


def _shadows(canvas: ImageDraw.ImageDraw, world: World, pixels: int) -> None:
    if world.ground is Ground.WATER:
        return
    tone = darker(backdrops.ground_colour(world), 0.24)
    for i, thing in enumerate(world.things):
        if thing.pose in ("fly", "held", "riding") or i in world.in_air:
            continue
        pen = Pen(canvas, _always(tone), frame=_frame(thing, pixels))
        pen.oval(tone, 0.0, 0.01, KINDS[thing.kind].width * 0.46, 0.045)


def _strings(canvas: ImageDraw.ImageDraw, world: World, i: int, pixels: int, ink: Ink) -> None:
    """A kite's string or a dog's leash, once both ends are drawn."""
    for a, verb, b in world.bonds:
        if verb not in ("flying", "walking") or max(a, b) != i:
            continue
        person, other = world.things[a], world.things[b]
        hand = people.HANDS[person.pose]
        held = (0.0, 0.3) if verb == "flying" else (0.25, 0.66)
        x0, y0 = _in_picture(person, hand)
        x1, y1 = _in_picture(other, held)
        sag = 0.03
        pen = Pen(canvas, ink, frame=(0, pixels, pixels, 1))
        points = ((x0, y0), ((x0 + x1) / 2, (y0 + y1) / 2 - sag), (x1, y1))
        pen.line((245, 240, 230) if world.sky is Sky.NIGHT else (60, 50, 50), 0.007, *points)


def _in_picture(thing: Thing, point: tuple[float, float]) -> tuple[float, float]:
    side = -1 if thing.left else 1
    x = thing.x + side * point[0] * thing.height
    return x, 1 - thing.base + point[1] * thing.height


def _waterline(canvas: ImageDraw.ImageDraw, world: World, pixels: int) -> None:
    """Waves that hide the lowest part of what floats."""
    if world.ground is not Ground.WATER:
        return
    pen = Pen(canvas, lambda c: c, frame=(0, 0, pixels, 1))
    crest = backdrops.lit((150, 204, 240), world.sky)
    for thing in world.things:
        if thing.pose == "fly" or thing.kind == "fish":
            continue
        half = KINDS[thing.kind].width * thing.height * 0.46
        y = -thing.base
        pen.blob(
            backdrops.ground_colour(world),
            (thing.x - half, y + 0.02),
            (thing.x - half * 0.3, y + 0.03),
            (thing.x + half * 0.3, y + 0.02),
            (thing.x + half, y + 0.03),
            (thing.x + half * 0.8, y - 0.015),
            (thing.x - half * 0.8, y - 0.015),
        )
        for dx in (-0.7, 0.0, 0.7):
            pen.arc(crest, 0.007, (thing.x + dx * half, y + 0.035), (half * 0.3, 0.014), (200, 340))


def draw_ids(world: World, pixels: int) -> NDArray[np.uint8]:
    """Which thing covers each pixel, by the pens that paint the picture.

    Args:
        world: the scene.
        pixels: edge of the mask.

    Returns:
        (pixels, pixels) uint8: 0 for nothing, else 1 + the position in `world.things`.
    """
    mask = Image.new("L", (pixels, pixels))
    canvas = ImageDraw.Draw(mask)
    for i, thing in enumerate(world.things):
        _LOOKS[thing.kind](Pen(canvas, _always(i + 1), frame=_frame(thing, pixels)), thing)
    return np.asarray(mask)


def draw_labels(world: World, size: int, patch: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What covers most of each patch of the picture.

    Args:
        world: the scene.
        size: edge of the picture in pixels, a multiple of `patch`.
        patch: edge of a patch in pixels.

    Returns:
        (grid, grid) uint8 positions in `KIND_LABELS` and in `COLOUR_LABELS`, grid = size / patch;
        0 where no thing covers a quarter of the patch.

    Raises:
        ShapeError: `size` is no multiple of `patch`.
    """
    if patch < 1 or size % patch:
        raise ShapeError(f"a picture of {size} pixels has no whole patches of {patch}")
    grid, fine = size // patch, max(patch, 8)  # thin legs are lost in a coarser mask
    ids = draw_ids(world, grid * fine).reshape(grid, fine, grid, fine)
    cover = np.stack([(ids == i + 1).sum((1, 3)) for i in range(len(world.things))])
    top = cover.argmax(0)
    shown = cover.max(0) >= LEAST_COVER * fine * fine
    kinds = np.array([KIND_LABELS.index(t.kind) for t in world.things], np.uint8)
    colours = np.array([COLOUR_LABELS.index(t.colour) for t in world.things], np.uint8)
    return (
        np.where(shown, kinds[top], 0).astype(np.uint8),
        np.where(shown, colours[top], 0).astype(np.uint8),
    )
