"""Sky, ground, and what lies behind."""

from itertools import pairwise

from PIL import Image, ImageDraw

from retrieval_engine.sources.scenes.cast import Dice
from retrieval_engine.sources.scenes.pen import RGB, Pen, darker, mix
from retrieval_engine.sources.scenes.vocabulary import Ground, Sky
from retrieval_engine.sources.scenes.world import World

HORIZON = 0.56  # of the picture's height, from the top

_SKIES: dict[Sky, tuple[tuple[float, RGB], ...]] = {
    Sky.DAY: ((0.0, (70, 150, 240)), (1.0, (196, 230, 252))),
    Sky.CLOUDY: ((0.0, (134, 144, 160)), (1.0, (198, 204, 212))),
    Sky.SUNSET: (
        (0.0, (86, 52, 128)),
        (0.45, (206, 84, 106)),
        (0.8, (250, 150, 70)),
        (1.0, (255, 206, 110)),
    ),
    Sky.NIGHT: ((0.0, (16, 18, 58)), (1.0, (48, 58, 118))),
}
_GROUNDS: dict[Ground, tuple[RGB, RGB]] = {
    Ground.GRASS: ((104, 190, 80), (64, 150, 56)),
    Ground.SAND: ((246, 226, 166), (226, 196, 130)),
    Ground.SNOW: ((236, 241, 250), (252, 253, 255)),
    Ground.WATER: ((58, 140, 214), (28, 92, 176)),
    Ground.STREET: ((118, 120, 126), (88, 90, 98)),
}
_LIGHT: dict[Sky, tuple[RGB, float]] = {
    Sky.DAY: ((255, 255, 255), 0.0),
    Sky.CLOUDY: ((120, 126, 138), 0.16),
    Sky.SUNSET: ((150, 70, 90), 0.26),
    Sky.NIGHT: ((14, 18, 52), 0.56),
}
SUN: RGB = (255, 236, 120)
MOON: RGB = (250, 246, 214)


def lit(colour: RGB, sky: Sky) -> RGB:
    """A colour of the land in this light."""
    tint, share = _LIGHT[sky]
    return mix(colour, tint, share)


def ground_colour(world: World) -> RGB:
    """About the colour that things on the ground stand before."""
    far, near = _GROUNDS[world.ground]
    return lit(mix(far, near, 0.5), world.sky)


def sky_colour(world: World) -> RGB:
    """About the colour that things in the air are seen against."""
    stops = _SKIES[world.sky]
    return mix(stops[0][1], stops[-1][1], 0.3)


def paint(world: World, pixels: int) -> Image.Image:
    """The picture without its subjects.

    Args:
        world: what to paint.
        pixels: edge of the square picture.
    """
    image = Image.new("RGB", (pixels, pixels))
    edge = round(HORIZON * pixels)
    image.paste(_gradient(_SKIES[world.sky], pixels, edge), (0, 0))
    far, near = (lit(c, world.sky) for c in _GROUNDS[world.ground])
    pen = Pen(ImageDraw.Draw(image), lambda colour: colour, frame=(0, edge, pixels, 1))
    dice = Dice(f"{world.seed}/{world.index}/backdrop")
    sun_x = dice.between(0.12, 0.88)
    _heavens(pen, world, dice, sun_x)
    _distance(pen, world, dice)
    image.paste(_gradient(((0.0, far), (1.0, near)), pixels, pixels - edge), (0, edge))
    _GROUND_DETAILS[world.ground](pen, world, dice, sun_x)
    if "falling snow" in world.backdrop:
        for _ in range(46):
            x, y = dice.between(0, 1), dice.between(-1 + HORIZON, HORIZON)
            pen.oval((255, 255, 255), x, y, dice.between(0.005, 0.009))
    return image


def _gradient(stops: tuple[tuple[float, RGB], ...], width: int, height: int) -> Image.Image:
    rows = bytearray()
    for y in range(height):
        t = y / max(1, height - 1)
        for (a, first), (b, second) in pairwise(stops):
            if a <= t <= b:
                rows += bytes(mix(first, second, (t - a) / (b - a)))
                break
    return Image.frombytes("RGB", (1, height), bytes(rows)).resize(
        (width, height), Image.Resampling.NEAREST
    )


# The frame of the pen: x from 0 to 1, y upwards from the horizon, both in picture widths.


def _heavens(pen: Pen, world: World, dice: Dice, sun_x: float) -> None:
    if world.sky is Sky.SUNSET:
        glow = (255, 190, 100)
        for r, share in ((0.2, 0.25), (0.155, 0.5)):
            pen.oval(mix((250, 150, 78), glow, share), sun_x, 0.02, r)
        pen.oval((255, 226, 110), sun_x, 0.02, 0.115)
        for _ in range(3):
            x, y, w = dice.between(0, 1), dice.between(0.2, 0.48), dice.between(0.1, 0.2)
            pen.round_box(
                mix((206, 84, 106), (255, 170, 120), 0.4), x - w, y, x + w, y + 0.014, radius=0.007
            )
    elif world.sky is Sky.DAY:
        y = dice.between(0.36, 0.46)
        pen.oval(mix((120, 184, 244), SUN, 0.45), sun_x, y, 0.092)
        pen.oval(SUN, sun_x, y, 0.07)
    elif world.sky is Sky.NIGHT:
        for _ in range(26):
            pen.oval(
                (236, 236, 250),
                dice.between(0, 1),
                dice.between(0.06, 0.55),
                dice.pick((0.003, 0.004, 0.006)),
            )
        _moon(pen, world, sun_x, dice.between(0.36, 0.46))
    if "clouds" in world.backdrop:
        _clouds(pen, world, dice)


def _moon(pen: Pen, world: World, x: float, y: float) -> None:
    if "full moon" in world.backdrop:
        pen.oval(MOON, x, y, 0.07)
        for dx, dy, r in ((0.02, 0.02, 0.014), (-0.025, -0.01, 0.01), (0.01, -0.03, 0.012)):
            pen.oval(darker(MOON, 0.12), x + dx, y + dy, r)
        return
    pen.oval(MOON, x, y, 0.075)
    pen.oval(
        mix((16, 18, 58), (48, 58, 118), 1 - (y + 0.02) / HORIZON), x - 0.036, y + 0.018, 0.066
    )


def _clouds(pen: Pen, world: World, dice: Dice) -> None:
    gray = world.sky is Sky.CLOUDY
    for _ in range(4 if gray else 2):
        x, y = dice.between(0.05, 0.95), dice.between(0.26, 0.5)
        s = dice.between(0.6, 1.0) * (1.25 if gray else 1.0)
        tone = (
            mix((232, 235, 240), (150, 156, 168), dice.between(0.1, 0.8))
            if gray
            else (252, 253, 255)
        )
        for dx, dy, rx, ry in (
            (-0.08, 0, 0.06, 0.032),
            (0.0, 0.024, 0.075, 0.048),
            (0.085, 0, 0.065, 0.034),
            (0, -0.008, 0.12, 0.028),
        ):
            pen.oval(tone, x + dx * s, y + dy * s, rx * s, ry * s)


def _distance(pen: Pen, world: World, dice: Dice) -> None:
    sky = world.sky
    snow = world.ground is Ground.SNOW
    if "hills" in world.backdrop:
        tone = (206, 218, 234) if snow else (88, 164, 84)
        for i in range(3):
            x = -0.05 + i * 0.45 + dice.between(-0.1, 0.1)
            pen.oval(
                lit(darker(tone, 0.06 * i), sky),
                x,
                -0.04,
                dice.between(0.3, 0.42),
                dice.between(0.11, 0.17),
            )
    elif "mountains" in world.backdrop:
        rock = lit((132, 138, 162), sky)
        cap = lit((246, 248, 252), sky)
        for i in range(3):
            x, h, w = i * 0.42 + dice.between(-0.08, 0.1), dice.between(0.2, 0.3), 0.3
            pen.poly(darker(rock, 0.08 * (i % 2)), (x - w, 0), (x, h), (x + w, 0))
            pen.poly(
                cap,
                (x - w * 0.3, h * 0.7),
                (x, h),
                (x + w * 0.3, h * 0.7),
                (x + w * 0.1, h * 0.62),
                (x - w * 0.06, h * 0.72),
            )
    elif "buildings" in world.backdrop:
        _skyline(pen, world, dice)


def _skyline(pen: Pen, world: World, dice: Dice) -> None:
    x = -0.02
    night = world.sky is Sky.NIGHT
    while x < 1:
        w, h = dice.between(0.1, 0.19), dice.between(0.09, 0.26)
        tone = dice.pick(((164, 150, 148), (142, 152, 172), (178, 164, 150), (150, 142, 160)))
        pen.box(lit(tone, world.sky), x, 0, x + w, h)
        pane = (250, 216, 120) if night else lit((206, 220, 232), world.sky)
        for i in range(int(w / 0.05)):
            for j in range(int(h / 0.055)):
                if dice.chance(0.6):
                    px, py = x + 0.016 + i * 0.05, h - 0.045 - j * 0.055
                    pen.box(pane, px, py, px + 0.02, py + 0.026)
        x += w + dice.between(0.0, 0.03)


def _grass(pen: Pen, world: World, dice: Dice, sun_x: float) -> None:
    blade = lit((52, 128, 46), world.sky)
    for _ in range(34):
        x, y = dice.between(0, 1), dice.between(-0.43, -0.03)
        s = 0.008 - y * 0.03
        pen.line(blade, 0.005, (x - s * 0.6, y + s), (x, y), (x + s * 0.5, y + s))


def _sand(pen: Pen, world: World, dice: Dice, sun_x: float) -> None:
    pen.box(lit((40, 116, 196), world.sky), 0, -0.1, 1, 0)
    for _ in range(7):
        x, y = dice.between(0, 1), dice.between(-0.08, -0.015)
        pen.line(lit((120, 180, 226), world.sky), 0.004, (x, y), (x + 0.06, y))
    foam = lit((250, 252, 252), world.sky)
    wet = lit((216, 186, 128), world.sky)
    pen.box(wet, 0, -0.13, 1, -0.1)
    for i in range(12):
        pen.oval(foam, i / 11, -0.104, 0.055, dice.between(0.006, 0.013))
    if world.sky is Sky.SUNSET:
        _glitter(pen, sun_x, dice, (-0.09, 0.0))
    for _ in range(30):
        x, y = dice.between(0, 1), dice.between(-0.43, -0.15)
        pen.oval(lit((196, 164, 104), world.sky), x, y, 0.006, 0.004)


def _snow(pen: Pen, world: World, dice: Dice, sun_x: float) -> None:
    shade = lit((206, 218, 238), world.sky)
    for _ in range(9):
        x, y = dice.between(0, 1), dice.between(-0.42, -0.04)
        pen.oval(shade, x, y, dice.between(0.05, 0.11), 0.008)


def _water(pen: Pen, world: World, dice: Dice, sun_x: float) -> None:
    if world.sky is Sky.SUNSET:
        _glitter(pen, sun_x, dice, (-0.42, 0.0))
    crest = lit((150, 204, 240), world.sky)
    for _ in range(16):
        x, y = dice.between(0, 1), dice.between(-0.42, -0.03)
        s = 0.02 - y * 0.07
        pen.arc(crest, 0.006, (x, y + s * 0.35), (s, s * 0.4), (200, 340))


def _glitter(pen: Pen, x: float, dice: Dice, reach: tuple[float, float]) -> None:
    """The sun's path on water: broken bars of light, wide and close together far out."""
    low, high = reach
    y = high - 0.008
    while y > low:
        depth = (high - y) / 0.42
        width = 0.1 - 0.02 * depth + dice.between(-0.03, 0.02)
        shift = dice.between(-0.02, 0.02) * (0.4 + depth)
        thick = 0.006 + 0.008 * depth
        tone = mix((255, 222, 130), (250, 150, 96), min(1.0, depth * 0.9))
        pen.round_box(tone, x + shift - width, y, x + shift + width, y + thick, radius=thick / 2)
        y -= 0.018 + 0.022 * depth


def _street(pen: Pen, world: World, dice: Dice, sun_x: float) -> None:
    pen.box(lit((176, 172, 166), world.sky), 0, -0.07, 1, 0)
    pen.box(lit((140, 138, 136), world.sky), 0, -0.082, 1, -0.068)
    start = dice.between(-0.2, 0.0)
    for i in range(6):
        x = start + i * 0.24
        pen.poly(
            lit((246, 238, 200), world.sky),
            (x, -0.26),
            (x + 0.13, -0.26),
            (x + 0.125, -0.235),
            (x + 0.005, -0.235),
        )


_GROUND_DETAILS = {
    Ground.GRASS: _grass,
    Ground.SAND: _sand,
    Ground.SNOW: _snow,
    Ground.WATER: _water,
    Ground.STREET: _street,
}
