"""Grounds, lights, colours, and which kind of thing each word names."""

from collections.abc import Mapping
from enum import StrEnum

from retrieval_engine.sources.scenes.catalogue import KINDS


class Ground(StrEnum):
    """What is underfoot; a beach is `sand`."""

    GRASS = "grass"
    SAND = "sand"
    SNOW = "snow"
    WATER = "water"
    STREET = "street"


class Sky(StrEnum):
    """The light."""

    DAY = "day"
    CLOUDY = "cloudy"
    SUNSET = "sunset"
    NIGHT = "night"


COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "gray",
)

PEOPLE = ("man", "woman", "boy", "girl")

WIDER: Mapping[str, tuple[str, ...]] = {
    "person": PEOPLE,
    "child": ("boy", "girl"),
    "animal": ("dog", "cat", "horse", "cow", "sheep", "duck", "bird", "fish"),
    "vehicle": ("car", "bus", "truck"),
}
"""Words that cover several kinds."""

_WIDER_WORDS = {
    "person": ("person", "people", "persons", "human"),
    "child": ("child", "children", "kid", "kids"),
    "animal": ("animal", "animals"),
    "vehicle": ("vehicle", "vehicles"),
}

WORDS: Mapping[str, str] = {
    **{word: kind.name for kind in KINDS.values() for pair in kind.words for word in pair},
    **{word: name for name, words in _WIDER_WORDS.items() for word in words},
    "pup": "dog",
    "kitty": "cat",
    "ship": "boat",
    "aeroplane": "airplane",
    "jet": "airplane",
    "automobile": "car",
}
"""Every word for a thing, with the kind (or the wider word of `WIDER`) it names."""

PLURALS: frozenset[str] = frozenset(
    {plural for kind in KINDS.values() for one, plural in kind.words if plural != one}
    | {"people", "persons", "children", "kids", "animals", "vehicles"}
)
