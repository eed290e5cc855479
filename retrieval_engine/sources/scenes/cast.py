"""Who is in a picture: the things, and the choice of them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from retrieval_engine.sources.scenes.catalogue import KINDS
from retrieval_engine.sources.scenes.vocabulary import PEOPLE, Ground, Sky

T = TypeVar("T")


class Dice:
    """Random choices that are the same on every machine and Python version.

    Only `Random.random()` is used: it is the one method whose sequence Python promises to keep.
    """

    def __init__(self, name: str) -> None:
        self._random = random.Random(name).random

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def number(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self._random() * n)

    def pick(self, choices: Sequence[T]) -> T:
        """One of them, all equally likely."""
        return choices[self.number(len(choices))]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """One of the keys, as likely as its weight."""
        left = self._random() * sum(weights.values())
        for choice, weight in weights.items():
            left -= weight
            if left < 0:
                return choice
        return next(reversed(list(weights)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One thing in a picture.

    Attributes:
        kind: a key of `KINDS`.
        colour: one of `COLOURS`; for a person, of the clothes.
        pose: `stand`, `fly` (in the air), or a person's `riding`, `flying`, `holding`, `walking`.
        x: centre, as a fraction of the picture's width.
        base: lowest point, as a fraction of the picture's height from the top.
        height: as a fraction of the picture's height.
        left: it faces left.
        variant: chooses among looks that no caption speaks of.
    """

    kind: str
    colour: str
    pose: str = "stand"
    x: float = 0.5
    base: float = 0.9
    height: float = 0.5
    left: bool = False
    variant: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Who is in the picture, before anyone has a place.

    Attributes:
        standing: one or two (kind, colour, pose); a rider's horse is not listed.
        mount: the horse's colour when the first one rides.
        flying: (kind, colour) of what is in the air, or None.
        walks: the first walks the second, a dog, on a leash.
        flown: the first flies the kite in the air.
        held: colour of the umbrella the first holds over the head.
    """

    standing: tuple[tuple[str, str, str], ...]
    flying: tuple[str, str, int] | None = None
    mount: str = ""
    held: str = ""
    walks: bool = False
    flown: bool = False


GROUNDS = {
    Ground.GRASS: 0.27,
    Ground.STREET: 0.22,
    Ground.SAND: 0.21,
    Ground.SNOW: 0.15,
    Ground.WATER: 0.15,
}
SKIES = {Sky.DAY: 0.34, Sky.NIGHT: 0.24, Sky.SUNSET: 0.22, Sky.CLOUDY: 0.2}

_EVERYWHERE = {
    **dict.fromkeys(("dog", "cat"), 1.5),
    **dict.fromkeys(("horse", "tree", "house", "car", "bench", "ball", "bicycle"), 1.0),
    **dict.fromkeys(("man", "woman", "boy", "girl", "flower", "bird", "umbrella"), 0.8),
    **dict.fromkeys(("cow", "sheep", "duck", "bus", "truck"), 0.6),
}
STANDING: Mapping[Ground, Mapping[str, float]] = {
    Ground.GRASS: _EVERYWHERE | {"cow": 1.2, "sheep": 1.2, "horse": 1.3, "flower": 1.3},
    Ground.SAND: _EVERYWHERE | {"umbrella": 1.8, "ball": 1.4, "bus": 0.3, "truck": 0.4},
    Ground.SNOW: _EVERYWHERE | {"snowman": 2.5, "bus": 0.5, "umbrella": 0.5},
    Ground.STREET: _EVERYWHERE | {"car": 4.0, "bus": 3.0, "truck": 2.2, "bicycle": 3.0},
    Ground.WATER: {"boat": 3.0, "fish": 1.0, "duck": 1.0},
}
FLYING = {"bird": 1.0, "kite": 1.0, "balloon": 0.8, "airplane": 0.8}


def cast_for(ground: Ground, dice: Dice) -> Cast:
    """Choose who is in a picture: at most two on the ground and one in the air."""
    alone_in_air = dice.chance(0.06)
    if alone_in_air:
        return Cast(standing=(), flying=_flyer(dice, twins=0.2))
    if ground is not Ground.WATER and dice.chance(0.27):
        return _busy_person(ground, dice)
    first = _someone(dice.weighted(STANDING[ground]), dice)
    flying = _flyer(dice) if dice.chance(0.28) else None
    if flying and flying[0] == first[0]:
        flying = None
    if dice.chance(0.44):
        return Cast(standing=(first,), flying=flying)
    if dice.chance(0.24):
        return Cast(standing=(first, first), flying=flying)
    return Cast(standing=(first, _companion(ground, dice, first, flying)), flying=flying)


def _someone(kind: str, dice: Dice) -> tuple[str, str, str]:
    return kind, dice.pick(KINDS[kind].colours), "stand"


def _companion(
    ground: Ground, dice: Dice, first: tuple[str, str, str], flying: tuple[str, str, int] | None
) -> tuple[str, str, str]:
    taken = {first[0], flying[0] if flying else ""}
    choices = {kind: w for kind, w in STANDING[ground].items() if kind not in taken}
    return _someone(dice.weighted(choices), dice)


def _flyer(dice: Dice, twins: float = 0.0) -> tuple[str, str, int]:
    kind = dice.weighted(FLYING)
    return kind, dice.pick(KINDS[kind].colours), 2 if dice.chance(twins) else 1


def _busy_person(ground: Ground, dice: Dice) -> Cast:
    who = dice.pick(PEOPLE)
    colour = dice.pick(KINDS[who].colours)
    kite = 0.5 if ground is Ground.SAND else 0.3
    doing = dice.weighted({"riding": 0.28, "flying": kite, "holding": 0.3, "walking": 0.2})
    person = (who, colour, doing)
    if doing == "walking":
        return Cast(standing=(person, _someone("dog", dice)), walks=True)
    if doing == "flying":
        kite_colour = dice.pick(KINDS["kite"].colours)
        beside = (_other_animal(dice),) if dice.chance(0.2) else ()
        return Cast(standing=(person, *beside), flying=("kite", kite_colour, 1), flown=True)
    if doing == "riding":
        return Cast(standing=(person,), mount=dice.pick(KINDS["horse"].colours))
    beside = (_other_animal(dice),) if dice.chance(0.3) else ()
    held = dice.pick(KINDS["umbrella"].colours)
    return Cast(standing=(person, *beside), held=held)


def _other_animal(dice: Dice) -> tuple[str, str, str]:
    return _someone(dice.pick(("dog", "cat", "sheep", "cow", "ball", "bench", "flower")), dice)


def backdrop_for(ground: Ground, sky: Sky, dice: Dice) -> tuple[str, ...]:
    """Choose what is behind; captions may speak of it."""
    behind: list[str] = []
    if ground is Ground.SAND:
        behind.append("sea")
    elif ground is Ground.STREET:
        behind += ["buildings"] if dice.chance(0.6) else []
    elif dice.chance(0.5):
        behind.append(dice.pick(("hills", "mountains")))
    if sky is Sky.CLOUDY or (sky is Sky.DAY and dice.chance(0.55)):
        behind.append("clouds")
    if sky is Sky.NIGHT:
        behind.append(dice.pick(("full moon", "crescent moon")))
    if ground is Ground.SNOW and dice.chance(0.35):
        behind.append("falling snow")
    return tuple(behind)
