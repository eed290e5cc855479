"""How the animals look. Every function draws one in a frame of height 1, facing right."""

from retrieval_engine.sources.scenes.cast import Thing
from retrieval_engine.sources.scenes.pen import PALETTE, RGB, Pen, brightness, darker, lighter, mix

INK = (28, 26, 34)
WHITE = (250, 250, 250)
PINK = (240, 150, 160)
BEAK = (250, 160, 40)

FUR: dict[str, RGB] = {
    **PALETTE,
    "brown": (122, 74, 42),
    "orange": (236, 150, 62),
    "gray": (140, 142, 150),
    "black": (46, 44, 52),
}


def _eye(pen: Pen, x: float, y: float, r: float) -> None:
    pen.oval(WHITE, x, y, r)
    pen.oval(INK, x + r * 0.25, y, r * 0.62)


def _marking(colour: RGB) -> RGB:
    """A shade for stripes and ears that shows on the colour."""
    return darker(colour, 0.32) if brightness(colour) > 90 else lighter(colour, 0.28)


def dog(pen: Pen, thing: Thing) -> None:
    """Floppy ear, snout, raised tail, a collar."""
    fur = FUR[thing.colour]
    far, mark = darker(fur, 0.22), _marking(fur)
    pen.line(fur, 0.09, (-0.42, 0.56), (-0.54, 0.72), (-0.56, 0.88))
    for x in (-0.26, 0.2):
        pen.line(far, 0.12, (x, 0.4), (x, 0.05))
    for x in (-0.36, 0.1):
        pen.line(fur, 0.13, (x, 0.4), (x, 0.065))
        pen.oval(fur, x + 0.04, 0.05, 0.09, 0.05)
    pen.blob(
        fur,
        (-0.46, 0.5),
        (-0.36, 0.66),
        (0.0, 0.66),
        (0.26, 0.72),
        (0.3, 0.48),
        (0.1, 0.33),
        (-0.3, 0.34),
    )
    pen.line(fur, 0.2, (0.18, 0.58), (0.3, 0.76))
    pen.line((214, 40, 46), 0.07, (0.17, 0.73), (0.34, 0.62))
    pen.oval(fur, 0.32, 0.8, 0.19)
    pen.blob(fur, (0.36, 0.88), (0.58, 0.8), (0.62, 0.72), (0.54, 0.66), (0.36, 0.66))
    pen.oval(INK, 0.6, 0.79, 0.052)
    pen.line(INK, 0.02, (0.46, 0.7), (0.57, 0.71))
    pen.blob(mark, (0.2, 0.95), (0.3, 0.9), (0.28, 0.66), (0.18, 0.56), (0.1, 0.68))
    _eye(pen, 0.41, 0.84, 0.048)


def cat(pen: Pen, thing: Thing) -> None:
    """Sitting: pointed ears, whiskers, a tail that curls."""
    fur = FUR[thing.colour]
    mark = _marking(fur)
    pen.line(fur, 0.1, (-0.16, 0.08), (-0.34, 0.08), (-0.4, 0.2), (-0.36, 0.34), (-0.28, 0.38))
    pen.blob(
        fur,
        (-0.26, 0.04),
        (-0.27, 0.26),
        (-0.15, 0.52),
        (0.15, 0.52),
        (0.27, 0.26),
        (0.26, 0.04),
        (0.0, 0.0),
    )
    pen.poly(fur, (-0.27, 1.0), (-0.27, 0.72), (-0.04, 0.88))
    pen.poly(fur, (0.27, 1.0), (0.27, 0.72), (0.04, 0.88))
    pen.poly(PINK, (-0.23, 0.93), (-0.23, 0.8), (-0.12, 0.87))
    pen.poly(PINK, (0.23, 0.93), (0.23, 0.8), (0.12, 0.87))
    pen.oval(fur, 0.0, 0.68, 0.29, 0.22)
    for y in (0.16, 0.27):
        pen.line(mark, 0.03, (-0.24, y), (-0.14, y + 0.02))
        pen.line(mark, 0.03, (0.24, y), (0.14, y + 0.02))
    for x in (-0.06, 0.0, 0.06):
        pen.line(mark, 0.026, (x, 0.88), (x, 0.8))
    pen.line(mark, 0.025, (0.0, 0.04), (0.0, 0.24))
    for x in (-0.12, 0.12):
        pen.oval((150, 214, 70), x, 0.7, 0.066, 0.07)
        pen.oval(INK, x, 0.7, 0.024, 0.06)
        pen.oval(fur, x, 0.05, 0.09, 0.05)
    pen.poly(PINK, (-0.04, 0.63), (0.04, 0.63), (0.0, 0.585))
    pen.line(INK, 0.014, (-0.07, 0.54), (0.0, 0.58), (0.07, 0.54))
    whisker = INK if brightness(fur) > 90 else (220, 220, 220)
    for side in (-1, 1):
        pen.line(whisker, 0.012, (side * 0.12, 0.6), (side * 0.36, 0.64))
        pen.line(whisker, 0.012, (side * 0.12, 0.57), (side * 0.36, 0.55))


def horse(pen: Pen, thing: Thing) -> None:
    """Long legs and neck, mane and tail."""
    coat = FUR[thing.colour]
    hair = darker(coat, 0.5) if brightness(coat) > 70 else lighter(coat, 0.3)
    far = darker(coat, 0.22)
    pen.blob(
        hair,
        (-0.36, 0.66),
        (-0.48, 0.6),
        (-0.55, 0.34),
        (-0.49, 0.22),
        (-0.44, 0.42),
        (-0.36, 0.54),
    )
    for x in (-0.22, 0.2):
        pen.line(far, 0.085, (x, 0.48), (x + 0.01, 0.05))
        pen.box(INK, x - 0.045, 0.0, x + 0.06, 0.055)
    for x in (-0.32, 0.1):
        pen.line(coat, 0.095, (x, 0.48), (x + 0.01, 0.05))
        pen.box(INK, x - 0.045, 0.0, x + 0.06, 0.055)
    pen.blob(
        coat,
        (-0.4, 0.56),
        (-0.34, 0.68),
        (0.0, 0.65),
        (0.24, 0.7),
        (0.28, 0.5),
        (0.14, 0.41),
        (-0.26, 0.42),
    )
    pen.poly(coat, (0.06, 0.66), (0.24, 0.92), (0.4, 0.86), (0.29, 0.5))
    pen.poly(hair, (0.02, 0.68), (0.2, 0.98), (0.29, 0.95), (0.16, 0.66))
    pen.blob(
        coat, (0.22, 0.95), (0.34, 0.94), (0.53, 0.76), (0.53, 0.67), (0.44, 0.66), (0.28, 0.78)
    )
    pen.poly(coat, (0.24, 0.9), (0.27, 1.02), (0.34, 0.92))
    pen.oval(darker(coat, 0.25) if brightness(coat) > 70 else lighter(coat, 0.2), 0.49, 0.7, 0.045)
    _eye(pen, 0.35, 0.86, 0.03)


def cow(pen: Pen, thing: Thing) -> None:
    """A box of a body with patches, horns, a pink muzzle and udder."""
    hide = FUR[thing.colour]
    patch = (70, 70, 78) if thing.colour == "white" else WHITE
    patch = mix(WHITE, (150, 150, 156), 0.55) if thing.colour == "white" else patch
    far = darker(hide, 0.22)
    pen.line(hide, 0.04, (-0.5, 0.72), (-0.6, 0.6), (-0.6, 0.4))
    pen.oval(INK, -0.6, 0.36, 0.045, 0.07)
    for x in (-0.3, 0.2):
        pen.line(far, 0.12, (x, 0.4), (x, 0.06))
    pen.oval(PINK, -0.22, 0.29, 0.12, 0.09)
    for x in (-0.42, 0.1):
        pen.line(hide, 0.13, (x, 0.4), (x, 0.065))
        pen.box(INK, x - 0.065, 0.0, x + 0.065, 0.06)
    pen.round_box(hide, -0.53, 0.3, 0.32, 0.8, radius=0.14)
    pen.blob(patch, (-0.42, 0.76), (-0.2, 0.78), (-0.18, 0.6), (-0.34, 0.52), (-0.46, 0.62))
    pen.blob(patch, (0.0, 0.6), (0.14, 0.66), (0.2, 0.46), (0.04, 0.38), (-0.06, 0.46))
    for x, tip in ((0.32, 0.24), (0.5, 0.6)):
        pen.line((226, 214, 180), 0.06, (x, 0.9), (tip, 1.0))
    pen.poly(hide, (0.3, 0.86), (0.18, 0.84), (0.28, 0.76))
    pen.blob(hide, (0.3, 0.92), (0.5, 0.92), (0.58, 0.74), (0.52, 0.58), (0.36, 0.58), (0.28, 0.74))
    pen.oval(PINK, 0.48, 0.63, 0.14, 0.09)
    pen.oval(darker(PINK, 0.4), 0.44, 0.64, 0.022)
    pen.oval(darker(PINK, 0.4), 0.54, 0.64, 0.022)
    _eye(pen, 0.4, 0.8, 0.042)
    _eye(pen, 0.53, 0.8, 0.036)


def sheep(pen: Pen, thing: Thing) -> None:
    """A cloud of wool on thin legs, with a bare face."""
    wool = FUR[thing.colour]
    skin = (60, 56, 62) if brightness(wool) > 120 else (222, 196, 168)
    for x in (-0.28, -0.14, 0.12, 0.26):
        pen.line(darker(skin, 0.1), 0.075, (x, 0.36), (x, 0.04))
    shade = darker(wool, 0.16) if brightness(wool) > 90 else lighter(wool, 0.18)
    curls = (
        (-0.38, 0.5),
        (-0.3, 0.7),
        (-0.08, 0.78),
        (0.14, 0.74),
        (0.28, 0.56),
        (0.14, 0.4),
        (-0.1, 0.36),
        (-0.3, 0.4),
    )
    pen.oval(wool, -0.05, 0.56, 0.36, 0.26)
    for x, y in curls:
        pen.oval(wool, x, y, 0.16)
    for x, y in ((-0.28, 0.62), (-0.04, 0.66), (-0.14, 0.46), (0.1, 0.54), (-0.36, 0.46)):
        pen.arc(shade, 0.03, (x, y), (0.085, 0.085), (200, 350))
    pen.oval(skin, 0.3, 0.72, 0.12, 0.06)
    pen.blob(skin, (0.34, 0.86), (0.5, 0.84), (0.62, 0.66), (0.58, 0.56), (0.46, 0.56), (0.34, 0.7))
    pen.oval(wool, 0.38, 0.88, 0.12, 0.09)
    _eye(pen, 0.48, 0.74, 0.042)


def duck(pen: Pen, thing: Thing) -> None:
    """A boat-shaped body, a round head, a flat bill."""
    down = FUR[thing.colour]
    if thing.pose != "swim":
        for x in (-0.08, 0.1):
            pen.line(BEAK, 0.055, (x, 0.2), (x, 0.05))
            pen.poly(BEAK, (x - 0.04, 0.0), (x + 0.14, 0.0), (x, 0.07))
    pen.blob(
        down,
        (-0.52, 0.56),
        (-0.36, 0.46),
        (0.0, 0.5),
        (0.2, 0.56),
        (0.34, 0.36),
        (0.22, 0.16),
        (-0.14, 0.14),
        (-0.38, 0.28),
    )
    pen.line(down, 0.2, (0.18, 0.4), (0.2, 0.7))
    pen.oval(down, 0.22, 0.8, 0.2)
    pen.blob(BEAK, (0.36, 0.84), (0.46, 0.8), (0.56, 0.79), (0.54, 0.7), (0.36, 0.7))
    pen.blob(_marking(down), (-0.38, 0.42), (0.0, 0.44), (0.1, 0.32), (-0.08, 0.22), (-0.26, 0.28))
    _eye(pen, 0.28, 0.86, 0.045)


def bird(pen: Pen, thing: Thing) -> None:
    """In the air with raised wings, or standing on thin legs."""
    feathers = FUR[thing.colour]
    dark = darker(feathers, 0.3) if brightness(feathers) > 70 else lighter(feathers, 0.22)
    if thing.pose == "fly":
        pen.blob(dark, (0.06, 0.42), (-0.02, 0.8), (-0.22, 0.98), (-0.2, 0.6), (-0.14, 0.4))
        pen.poly(feathers, (-0.28, 0.36), (-0.68, 0.5), (-0.62, 0.32), (-0.68, 0.2), (-0.3, 0.22))
        pen.blob(
            feathers,
            (-0.42, 0.3),
            (-0.1, 0.46),
            (0.3, 0.52),
            (0.4, 0.34),
            (0.16, 0.14),
            (-0.2, 0.14),
        )
        pen.oval(feathers, 0.36, 0.46, 0.19)
        pen.poly(BEAK, (0.5, 0.54), (0.7, 0.44), (0.5, 0.38))
        pen.blob(
            dark, (0.18, 0.4), (0.22, 0.72), (0.1, 1.0), (-0.08, 0.7), (-0.14, 0.36), (0.02, 0.28)
        )
        _eye(pen, 0.42, 0.51, 0.055)
        return
    for x in (-0.08, 0.08):
        pen.line(BEAK, 0.045, (x, 0.28), (x, 0.03), (x + 0.1, 0.03))
    pen.poly(dark, (-0.2, 0.5), (-0.66, 0.5), (-0.62, 0.36), (-0.2, 0.32))
    pen.blob(
        feathers, (-0.36, 0.44), (-0.14, 0.62), (0.2, 0.72), (0.36, 0.5), (0.2, 0.26), (-0.14, 0.24)
    )
    pen.blob(
        lighter(feathers, 0.5), (0.06, 0.3), (0.3, 0.36), (0.34, 0.52), (0.2, 0.56), (0.06, 0.44)
    )
    pen.poly(dark, (0.2, 0.96), (0.1, 1.04), (0.06, 0.9), (0.16, 0.84))
    pen.oval(feathers, 0.28, 0.8, 0.2)
    pen.poly(BEAK, (0.44, 0.88), (0.66, 0.78), (0.44, 0.72))
    pen.blob(dark, (-0.32, 0.46), (0.02, 0.6), (0.14, 0.46), (0.0, 0.34), (-0.24, 0.36))
    _eye(pen, 0.34, 0.85, 0.055)


def fish(pen: Pen, thing: Thing) -> None:
    """An oval with fins and a forked tail."""
    scales = FUR[thing.colour]
    fin = darker(scales, 0.28)
    pen.poly(fin, (-0.42, 0.5), (-0.84, 0.92), (-0.72, 0.5), (-0.84, 0.08))
    pen.blob(fin, (-0.2, 0.8), (-0.1, 1.02), (0.24, 0.96), (0.3, 0.8))
    pen.poly(fin, (-0.06, 0.22), (-0.2, 0.0), (0.18, 0.16))
    pen.blob(
        scales,
        (-0.52, 0.5),
        (-0.2, 0.8),
        (0.3, 0.88),
        (0.74, 0.62),
        (0.78, 0.48),
        (0.36, 0.16),
        (-0.2, 0.2),
    )
    stripe = WHITE if thing.colour != "white" else (150, 160, 176)
    pen.poly(
        stripe, (0.14, 0.87), (0.26, 0.87), (0.2, 0.5), (0.26, 0.14), (0.14, 0.15), (0.08, 0.5)
    )
    pen.poly(fin, (-0.04, 0.5), (-0.24, 0.62), (-0.2, 0.36))
    _eye(pen, 0.54, 0.6, 0.085)
    pen.line(darker(scales, 0.5), 0.03, (0.62, 0.38), (0.72, 0.42))
