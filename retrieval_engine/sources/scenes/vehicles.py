"""How vehicles look. Height 1, facing right."""

from retrieval_engine.sources.scenes.cast import Thing
from retrieval_engine.sources.scenes.pen import PALETTE, RGB, Pen, darker, lighter

INK = (30, 30, 36)
GLASS = (176, 220, 244)
STEEL = (196, 200, 206)
LAMP = (255, 240, 150)


def _wheel(pen: Pen, x: float, r: float) -> None:
    pen.oval(INK, x, r, r)
    pen.oval(STEEL, x, r, r * 0.52)
    pen.oval(INK, x, r, r * 0.16)


def car(pen: Pen, thing: Thing) -> None:
    """A low body with a rounded cabin and two wheels."""
    paint = PALETTE[thing.colour]
    pen.blob(paint, (-0.66, 0.5), (-0.4, 0.98), (0.0, 1.0), (0.28, 0.92), (0.62, 0.5))
    pen.round_box(paint, -1.02, 0.2, 1.02, 0.62, radius=0.16)
    pen.poly(GLASS, (-0.5, 0.62), (-0.34, 0.88), (-0.08, 0.9), (-0.08, 0.62))
    pen.poly(GLASS, (0.02, 0.62), (0.02, 0.9), (0.22, 0.85), (0.44, 0.62))
    pen.line(darker(paint, 0.35), 0.03, (-0.03, 0.6), (-0.03, 0.28))
    pen.line(darker(paint, 0.35), 0.03, (-0.98, 0.28), (0.98, 0.28))
    pen.box(darker(paint, 0.5), -0.2, 0.5, -0.08, 0.54)
    pen.oval(LAMP, 0.94, 0.5, 0.075)
    pen.box((200, 40, 40), -1.02, 0.44, -0.93, 0.56)
    for x in (-0.56, 0.56):
        _wheel(pen, x, 0.22)


def bus(pen: Pen, thing: Thing) -> None:
    """A long box with a row of windows and a door."""
    paint = PALETTE[thing.colour]
    pen.round_box(paint, -0.86, 0.12, 0.86, 1.0, radius=0.1)
    pen.box(lighter(paint, 0.45), -0.86, 0.44, 0.86, 0.5)
    for i in range(4):
        x = -0.78 + i * 0.31
        pen.round_box(GLASS, x, 0.56, x + 0.25, 0.86, radius=0.03)
    pen.round_box(GLASS, 0.48, 0.2, 0.66, 0.86, radius=0.03)
    pen.line(darker(paint, 0.4), 0.025, (0.57, 0.2), (0.57, 0.86))
    pen.box(GLASS, 0.74, 0.5, 0.86, 0.88)
    pen.oval(LAMP, 0.82, 0.28, 0.045)
    for x in (-0.52, 0.3):
        _wheel(pen, x, 0.15)


def truck(pen: Pen, thing: Thing) -> None:
    """A high cargo box behind a separate cab."""
    paint = PALETTE[thing.colour]
    pen.box((62, 62, 70), -0.86, 0.16, 0.86, 0.28)
    box = darker(paint, 0.12)
    pen.box(box, -0.9, 0.26, 0.3, 1.0)
    rib = darker(paint, 0.34)
    for i in range(5):
        x = -0.7 + i * 0.2
        pen.line(rib, 0.02, (x, 0.32), (x, 0.94))
    pen.line(rib, 0.03, (-0.9, 0.97), (0.3, 0.97))
    pen.poly(paint, (0.38, 0.16), (0.38, 0.8), (0.64, 0.8), (0.76, 0.52), (0.9, 0.48), (0.9, 0.16))
    pen.poly(GLASS, (0.46, 0.52), (0.46, 0.73), (0.61, 0.73), (0.7, 0.52))
    pen.oval(LAMP, 0.85, 0.34, 0.045)
    for x in (-0.62, -0.28, 0.6):
        _wheel(pen, x, 0.17)


def bicycle(pen: Pen, thing: Thing) -> None:
    """Two large spoked wheels and a frame."""
    paint = PALETTE[thing.colour]
    tyre: RGB = (44, 44, 52)
    for x in (-0.46, 0.46):
        for dx, dy in ((0.3, 0.0), (0.15, 0.26), (-0.15, 0.26)):
            pen.line((150, 152, 160), 0.014, (x - dx, 0.34 - dy), (x + dx, 0.34 + dy))
        pen.ring(tyre, x, 0.34, 0.34, 0.06)
        pen.oval(tyre, x, 0.34, 0.045)
    w = 0.065
    pen.line(paint, w, (-0.46, 0.34), (-0.02, 0.32), (0.34, 0.76), (-0.18, 0.74), (-0.46, 0.34))
    pen.line(paint, w, (-0.02, 0.32), (-0.2, 0.84))
    pen.line(paint, w, (0.46, 0.34), (0.3, 0.9))
    pen.line(tyre, 0.05, (0.3, 0.92), (0.44, 0.98), (0.48, 0.9))
    pen.line(tyre, 0.08, (-0.32, 0.88), (-0.1, 0.88))
    pen.oval(tyre, -0.02, 0.32, 0.07)


def boat(pen: Pen, thing: Thing) -> None:
    """A hull with a mast and two sails."""
    paint = PALETTE[thing.colour]
    sail: RGB = (252, 250, 240)
    pen.line((104, 70, 44), 0.035, (0.0, 0.2), (0.0, 0.99))
    pen.poly(sail, (-0.04, 0.96), (-0.04, 0.31), (-0.4, 0.31))
    pen.poly(darker(sail, 0.07), (0.04, 0.92), (0.04, 0.31), (0.42, 0.31))
    pen.poly(paint, (0.0, 1.0), (0.0, 0.93), (-0.12, 0.965))
    pen.poly(paint, (-0.49, 0.25), (0.5, 0.25), (0.36, 0.0), (-0.36, 0.0))
    pen.poly(darker(paint, 0.3), (-0.415, 0.09), (0.415, 0.09), (0.36, 0.0), (-0.36, 0.0))
    pen.line(lighter(paint, 0.55), 0.025, (-0.47, 0.225), (0.475, 0.225))


def airplane(pen: Pen, thing: Thing) -> None:
    """A long body with swept wings and a tail fin."""
    paint = PALETTE[thing.colour]
    wing = darker(paint, 0.22)
    pen.poly(wing, (0.22, 0.56), (-0.16, 0.98), (-0.3, 0.98), (-0.12, 0.54))
    pen.poly(wing, (-0.76, 0.56), (-1.12, 1.0), (-0.92, 1.0), (-0.5, 0.6))
    pen.blob(
        paint,
        (-1.14, 0.62),
        (-0.7, 0.66),
        (0.7, 0.68),
        (1.04, 0.58),
        (1.14, 0.48),
        (0.9, 0.36),
        (0.3, 0.32),
        (-0.7, 0.42),
    )
    for i in range(6):
        pen.oval(GLASS, -0.5 + i * 0.2, 0.54, 0.05)
    pen.poly((90, 150, 200), (0.84, 0.64), (1.02, 0.58), (1.04, 0.52), (0.82, 0.54))
    pen.poly(wing, (0.3, 0.42), (-0.26, 0.0), (-0.46, 0.0), (-0.14, 0.42))
    pen.poly(wing, (-0.7, 0.5), (-1.1, 0.32), (-1.18, 0.34), (-0.96, 0.52))


def balloon(pen: Pen, thing: Thing) -> None:
    """A hot air balloon: a striped drop over a basket."""
    paint = PALETTE[thing.colour]
    stripe = lighter(paint, 0.72)
    pen.line((90, 70, 50), 0.018, (-0.13, 0.34), (-0.08, 0.18))
    pen.line((90, 70, 50), 0.018, (0.13, 0.34), (0.08, 0.18))
    pen.blob(
        paint,
        (0.0, 1.0),
        (-0.27, 0.9),
        (-0.36, 0.66),
        (-0.24, 0.42),
        (-0.1, 0.27),
        (0.1, 0.27),
        (0.24, 0.42),
        (0.36, 0.66),
        (0.27, 0.9),
    )
    for side in (-1, 1):
        pen.blob(
            stripe,
            (side * 0.08, 0.985),
            (side * 0.2, 0.9),
            (side * 0.24, 0.66),
            (side * 0.16, 0.42),
            (side * 0.07, 0.28),
            (side * 0.1, 0.45),
            (side * 0.13, 0.66),
            (side * 0.11, 0.86),
        )
    pen.box((136, 90, 50), -0.1, 0.0, 0.1, 0.18)
    pen.line((96, 62, 34), 0.03, (-0.1, 0.17), (0.1, 0.17))
