"""How the people look: told apart by dress, hair and build. Height 1, facing right."""

from retrieval_engine.sources.scenes.cast import Thing
from retrieval_engine.sources.scenes.pen import PALETTE, RGB, Pen, darker

INK = (30, 28, 36)
SKIN: tuple[RGB, ...] = ((250, 214, 180), (226, 172, 128), (166, 110, 72), (112, 72, 48))
HAIR: tuple[RGB, ...] = ((52, 36, 28), (240, 202, 96), (150, 74, 34), (30, 28, 34), (112, 70, 40))
TROUSERS: tuple[RGB, ...] = ((48, 62, 112), (70, 70, 80), (104, 78, 54))

HANDS = {
    "stand": (0.2, 0.36),
    "riding": (0.3, 0.42),
    "flying": (0.26, 0.86),
    "holding": (0.2, 0.62),
    "walking": (0.27, 0.42),
}
"""Where the busy hand is, by pose."""


def _looks(thing: Thing) -> tuple[RGB, RGB, RGB]:
    v = thing.variant
    skin = SKIN[v % 4]
    hair = HAIR[(v * 2 + v // 4) % 5] if v % 4 < 2 else HAIR[(0, 3)[v % 2]]
    return skin, hair, PALETTE[thing.colour]


def _arms(pen: Pen, thing: Thing, shoulder: float, *, sleeve: RGB, skin: RGB) -> None:
    """One hanging arm and one that does what the pose says."""
    half = 0.12
    hand = HANDS[thing.pose]
    if thing.pose == "stand":
        pen.line(sleeve, 0.085, (half, shoulder), (half + 0.06, shoulder - 0.16))
        pen.line(skin, 0.065, (half + 0.06, shoulder - 0.16), (half + 0.07, shoulder - 0.3))
    else:
        middle = ((half + hand[0]) / 2 + 0.02, (shoulder + hand[1]) / 2 - 0.02)
        pen.line(sleeve, 0.085, (half, shoulder), middle)
        pen.line(skin, 0.065, middle, hand)
        pen.oval(skin, *hand, 0.042)
    if thing.pose != "riding":
        pen.line(sleeve, 0.085, (-half, shoulder), (-half - 0.06, shoulder - 0.16))
        pen.line(skin, 0.065, (-half - 0.06, shoulder - 0.16), (-half - 0.07, shoulder - 0.3))


def _face(pen: Pen, y: float, r: float, skin: RGB) -> None:
    pen.oval(skin, 0.0, y, r)
    for x in (-0.02, 0.42):
        pen.oval(INK, x * r + 0.1 * r, y + 0.05 * r, 0.13 * r, 0.17 * r)
    pen.arc(darker(skin, 0.5), 0.14 * r, (0.3 * r, y - 0.3 * r), (0.28 * r, 0.2 * r), (200, 340))


def _legs(pen: Pen, thing: Thing, hip: float, *, cloth: RGB, bare: RGB, cut: float) -> None:
    """Two legs; below `cut` they are bare. A rider shows one, bent over the horse's side."""
    if thing.pose == "riding":
        pen.line(cloth, 0.13, (-0.02, hip), (0.12, hip - 0.08), (0.08, cut))
        pen.line(bare, 0.1, (0.08, cut), (0.08, 0.06))
        pen.oval(INK, 0.12, 0.04, 0.085, 0.045)
        return
    apart = 0.1 if thing.pose == "walking" else 0.07
    for x in (-apart, apart):
        pen.line(bare, 0.09, (x, cut + 0.02), (x, 0.06))
        pen.line(cloth, 0.12, (x * 0.8, hip), (x, cut))
        pen.oval(INK, x + 0.03, 0.04, 0.075, 0.04)


def man(pen: Pen, thing: Thing) -> None:
    """Tall: short hair, shirt, long trousers."""
    skin, hair, shirt = _looks(thing)
    trousers = TROUSERS[thing.variant % 3]
    _legs(pen, thing, 0.44, cloth=trousers, bare=trousers, cut=0.12)
    pen.round_box(shirt, -0.155, 0.42, 0.155, 0.77, radius=0.06)
    pen.box(INK, -0.15, 0.41, 0.15, 0.445)
    pen.box(skin, -0.045, 0.74, 0.045, 0.8)
    pen.oval(hair, -0.01, 0.905, 0.12, 0.11)
    _face(pen, 0.88, 0.108, skin)
    pen.wedge(hair, -0.01, 0.925, 0.118, 0.088, (4, 180))
    pen.oval(hair, -0.1, 0.89, 0.025, 0.06)
    if thing.variant % 2:
        pen.line(hair, 0.03, (0.0, 0.845), (0.075, 0.845))
    _arms(pen, thing, 0.72, sleeve=darker(shirt, 0.14), skin=skin)


def woman(pen: Pen, thing: Thing) -> None:
    """Tall: long hair, a long dress."""
    skin, hair, dress = _looks(thing)
    pen.blob(
        hair,
        (0.0, 1.0),
        (-0.13, 0.94),
        (-0.17, 0.76),
        (-0.15, 0.62),
        (0.1, 0.62),
        (0.13, 0.76),
        (0.12, 0.94),
    )
    _legs(pen, thing, 0.36, cloth=dress, bare=skin, cut=0.24)
    if thing.pose == "riding":
        pen.poly(dress, (-0.11, 0.56), (0.11, 0.56), (0.22, 0.26), (-0.16, 0.3))
    else:
        pen.poly(dress, (-0.1, 0.56), (0.1, 0.56), (0.25, 0.16), (-0.25, 0.16))
    pen.round_box(dress, -0.125, 0.5, 0.125, 0.76, radius=0.05)
    pen.box(darker(dress, 0.35), -0.115, 0.53, 0.115, 0.565)
    pen.box(skin, -0.04, 0.73, 0.04, 0.8)
    _face(pen, 0.87, 0.105, skin)
    pen.wedge(hair, -0.01, 0.905, 0.12, 0.095, (8, 184))
    pen.oval(hair, -0.1, 0.85, 0.028, 0.09)
    _arms(pen, thing, 0.71, sleeve=darker(dress, 0.14), skin=skin)


def boy(pen: Pen, thing: Thing) -> None:
    """Small with a large head, a cap, shorts."""
    skin, hair, shirt = _looks(thing)
    shorts = TROUSERS[thing.variant % 3]
    _legs(pen, thing, 0.34, cloth=shorts, bare=skin, cut=0.22)
    pen.round_box(shirt, -0.17, 0.3, 0.17, 0.62, radius=0.06)
    pen.oval(hair, -0.03, 0.8, 0.185, 0.17)
    _face(pen, 0.78, 0.18, skin)
    cap = darker(shirt, 0.3)
    pen.wedge(cap, -0.01, 0.82, 0.195, 0.18, (0, 180))
    pen.line(cap, 0.05, (0.1, 0.83), (0.3, 0.82))
    _arms(pen, thing, 0.57, sleeve=darker(shirt, 0.14), skin=skin)


def girl(pen: Pen, thing: Thing) -> None:
    """Small with a large head, two pigtails, a short flared dress."""
    skin, hair, dress = _looks(thing)
    for side in (-1, 1):
        pen.oval(hair, side * 0.24, 0.76, 0.085, 0.13)
        pen.oval(dress, side * 0.185, 0.85, 0.04)
    _legs(pen, thing, 0.3, cloth=skin, bare=skin, cut=0.22)
    pen.poly(dress, (-0.1, 0.62), (0.1, 0.62), (0.27, 0.2), (-0.27, 0.2))
    pen.line(darker(dress, 0.25), 0.035, (-0.255, 0.215), (0.255, 0.215))
    pen.oval(hair, -0.01, 0.81, 0.19, 0.185)
    _face(pen, 0.78, 0.172, skin)
    pen.wedge(hair, -0.01, 0.85, 0.182, 0.145, (5, 182))
    _arms(pen, thing, 0.56, sleeve=darker(dress, 0.14), skin=skin)
