"""How things that neither live nor drive look. Height 1."""

from retrieval_engine.sources.scenes.cast import Thing
from retrieval_engine.sources.scenes.pen import PALETTE, RGB, Pen, darker, lighter

INK = (30, 28, 36)
WOOD = (112, 74, 46)
LEAVES: dict[str, RGB] = {
    "green": (44, 138, 58),
    "orange": (236, 124, 32),
    "pink": (246, 150, 190),
    "yellow": (240, 200, 52),
}


def tree(pen: Pen, thing: Thing) -> None:
    """A round crown on a trunk, or, green ones only, sometimes a fir."""
    crown = LEAVES[thing.colour]
    shade, light = darker(crown, 0.16), lighter(crown, 0.16)
    if thing.colour == "green" and thing.variant % 3 == 0:
        pen.box(WOOD, -0.05, 0.0, 0.05, 0.2)
        for low, high, half in ((0.14, 0.52, 0.37), (0.36, 0.76, 0.3), (0.58, 1.0, 0.22)):
            pen.poly(crown, (-half, low), (half, low), (0.0, high))
            pen.poly(shade, (half * 0.2, low), (half, low), (0.0, high))
        return
    pen.poly(WOOD, (-0.075, 0.0), (0.075, 0.0), (0.045, 0.5), (-0.045, 0.5))
    pen.line(WOOD, 0.05, (0.0, 0.36), (0.14, 0.52))
    pen.oval(shade, 0.19, 0.58, 0.18)
    pen.oval(crown, -0.18, 0.58, 0.19)
    pen.oval(crown, 0.0, 0.73, 0.27)
    pen.oval(crown, 0.12, 0.62, 0.18)
    pen.oval(light, -0.08, 0.8, 0.12)
    if thing.colour == "green" and thing.variant % 3 == 1:
        for x, y in ((-0.18, 0.62), (0.02, 0.66), (0.16, 0.74), (-0.02, 0.86), (0.2, 0.56)):
            pen.oval((222, 44, 40), x, y, 0.032)


def house(pen: Pen, thing: Thing) -> None:
    """A wall with door and windows under a gable roof."""
    wall = PALETTE[thing.colour]
    roof: RGB = ((120, 52, 40), (82, 86, 100), (104, 70, 48))[thing.variant % 3]
    pen.box(darker(roof, 0.15), 0.2, 0.72, 0.31, 0.98)
    pen.box(wall, -0.42, 0.0, 0.42, 0.56)
    pen.poly(wall, (-0.42, 0.55), (0.42, 0.55), (0.0, 0.96))
    pen.poly(roof, (-0.52, 0.52), (0.0, 1.0), (0.52, 0.52), (0.43, 0.5), (0.0, 0.86), (-0.43, 0.5))
    pen.poly(roof, (-0.46, 0.56), (0.46, 0.56), (0.0, 0.97))
    pen.box((86, 54, 34), -0.09, 0.0, 0.09, 0.34)
    pen.oval((230, 200, 90), 0.05, 0.17, 0.02)
    glass: RGB = (255, 226, 120) if thing.variant % 2 else (178, 220, 244)
    for x in (-0.26, 0.26):
        pen.box((250, 250, 246), x - 0.11, 0.22, x + 0.11, 0.45)
        pen.box(glass, x - 0.09, 0.24, x + 0.09, 0.43)
        pen.line((250, 250, 246), 0.02, (x, 0.24), (x, 0.43))


def bench(pen: Pen, thing: Thing) -> None:
    """A park bench: three slats of back, a seat, iron legs."""
    paint = PALETTE[thing.colour]
    iron: RGB = (56, 56, 64)
    for x in (-0.66, 0.66):
        pen.line(iron, 0.07, (x, 0.03), (x, 0.46))
        pen.line(iron, 0.07, (x * 0.88, 0.4), (x * 0.88, 0.97))
        pen.line(iron, 0.06, (x, 0.46), (x * 1.1, 0.66), (x * 0.9, 0.68))
    for y in (0.58, 0.74, 0.9):
        pen.round_box(paint, -0.8, y, 0.8, y + 0.11, radius=0.03)
    pen.poly(lighter(paint, 0.14), (-0.76, 0.5), (0.76, 0.5), (0.85, 0.36), (-0.85, 0.36))
    pen.box(darker(paint, 0.3), -0.85, 0.3, 0.85, 0.37)


def umbrella(pen: Pen, thing: Thing) -> None:
    """A scalloped dome of coloured panels on a pole."""
    cloth = PALETTE[thing.colour]
    pen.line((96, 66, 44), 0.045, (0.0, 0.02), (0.0, 0.96))
    if thing.pose == "held":
        pen.arc((96, 66, 44), 0.045, (0.06, 0.03), (0.06, 0.06), (180, 360))
    pen.wedge(cloth, 0.0, 0.58, 0.54, 0.4, (0, 180))
    pen.wedge(lighter(cloth, 0.3), 0.0, 0.58, 0.34, 0.4, (0, 180))
    pen.wedge(cloth, 0.0, 0.58, 0.13, 0.4, (0, 180))
    for x in (-0.44, -0.235, 0.0, 0.235, 0.44):
        pen.wedge(
            lighter(cloth, 0.3) if abs(x) == 0.235 else cloth, x, 0.585, 0.105, 0.05, (180, 360)
        )
    pen.oval(darker(cloth, 0.2), 0.0, 0.98, 0.025)


def flower(pen: Pen, thing: Thing) -> None:
    """One large blossom on a stem with two leaves."""
    petal = PALETTE[thing.colour]
    stem: RGB = (50, 134, 56)
    pen.line(stem, 0.05, (0.0, 0.0), (0.0, 0.6))
    pen.blob(stem, (0.0, 0.1), (0.12, 0.26), (0.3, 0.3), (0.2, 0.14))
    pen.blob(stem, (0.0, 0.2), (-0.12, 0.36), (-0.3, 0.38), (-0.2, 0.22))
    ring = (
        (0.0, 0.19),
        (0.165, 0.095),
        (0.165, -0.095),
        (0.0, -0.19),
        (-0.165, -0.095),
        (-0.165, 0.095),
    )
    for dx, dy in ring:
        pen.oval(petal, dx, 0.7 + dy, 0.115)
    for dx, dy in ring:
        pen.oval(darker(petal, 0.14), dx * 0.75, 0.7 + dy * 0.75, 0.05)
    heart: RGB = (250, 206, 60) if thing.colour not in ("yellow", "orange") else (124, 70, 34)
    pen.oval(heart, 0.0, 0.7, 0.105)


def ball(pen: Pen, thing: Thing) -> None:
    """A beach ball: coloured and white panels."""
    paint = PALETTE[thing.colour]
    pen.oval(paint, 0.0, 0.5, 0.5)
    white: RGB = (250, 250, 248)
    pen.blob(
        white,
        (0.06, 0.96),
        (0.34, 0.82),
        (0.44, 0.5),
        (0.34, 0.18),
        (0.06, 0.04),
        (0.2, 0.3),
        (0.22, 0.7),
    )
    pen.blob(
        white,
        (-0.06, 0.94),
        (-0.3, 0.86),
        (-0.47, 0.6),
        (-0.44, 0.32),
        (-0.28, 0.12),
        (-0.3, 0.4),
        (-0.2, 0.72),
    )
    pen.oval(lighter(paint, 0.6), 0.0, 0.93, 0.09, 0.05)
    pen.ring(darker(paint, 0.3), 0.0, 0.5, 0.5, 0.035)


def kite(pen: Pen, thing: Thing) -> None:
    """A diamond with crossed spars and a tail of bows."""
    cloth = PALETTE[thing.colour]
    dark = darker(cloth, 0.24)
    top, right, low, left = (0.08, 1.0), (0.36, 0.7), (0.0, 0.3), (-0.3, 0.7)
    middle = (0.04, 0.7)
    tail = ((0.0, 0.3), (-0.08, 0.22), (0.02, 0.14), (-0.06, 0.05), (0.02, 0.0))
    pen.line(dark, 0.035, *tail)
    for x, y in tail[1:4]:
        pen.poly(
            cloth,
            (x - 0.08, y + 0.05),
            (x + 0.08, y - 0.04),
            (x + 0.08, y + 0.05),
            (x - 0.08, y - 0.04),
        )
    pen.poly(cloth, top, right, low, left)
    pen.poly(dark, top, right, middle)
    pen.poly(dark, low, left, middle)
    pen.line(INK, 0.018, top, low)
    pen.line(INK, 0.018, left, right)


def snowman(pen: Pen, thing: Thing) -> None:
    """Two balls of snow and a head, with hat, scarf and carrot."""
    snow: RGB = (250, 251, 254)
    scarf: RGB = ((214, 44, 44), (50, 140, 70), (48, 96, 210))[thing.variant % 3]
    for side in (-1, 1):
        pen.line(WOOD, 0.03, (side * 0.14, 0.5), (side * 0.33, 0.64))
        pen.line(WOOD, 0.022, (side * 0.28, 0.6), (side * 0.32, 0.54))
    pen.oval(snow, 0.0, 0.22, 0.25, 0.22)
    pen.oval((214, 222, 236), 0.05, 0.12, 0.17, 0.1)
    pen.oval(snow, 0.0, 0.24, 0.22, 0.17)
    pen.oval(snow, 0.0, 0.51, 0.175)
    pen.oval(snow, 0.0, 0.74, 0.135)
    pen.line(scarf, 0.06, (-0.11, 0.635), (0.11, 0.635))
    pen.line(scarf, 0.055, (0.06, 0.63), (0.09, 0.5))
    for y in (0.2, 0.32, 0.5):
        pen.oval(INK, 0.0, y, 0.02)
    pen.oval(INK, 0.0, 0.775, 0.02)
    pen.oval(INK, 0.075, 0.775, 0.02)
    pen.poly((246, 132, 34), (0.03, 0.75), (0.03, 0.705), (0.2, 0.715))
    pen.box(INK, -0.17, 0.835, 0.17, 0.865)
    pen.box(INK, -0.1, 0.86, 0.1, 1.0)
    pen.box(scarf, -0.1, 0.865, 0.1, 0.895)
