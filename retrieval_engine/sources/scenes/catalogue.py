"""The kinds of things a scene may hold: words, colours, doings and proportions."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of thing.

    Attributes:
        name: the plain English noun, as in `meta["subjects"]`.
        colours: what it may be painted in; one named twice is twice as likely.
        words: (singular, plural) pairs, the plain one first; named twice likewise.
        verbs: what it is said to be doing, third person singular.
        scale: its height relative to the tallest kinds.
        width: its width as a multiple of its height.
    """

    name: str
    colours: tuple[str, ...]
    words: tuple[tuple[str, str], ...]
    verbs: tuple[str, ...]
    scale: float
    width: float


_STANDS = ("stands", "is standing", "is")
_PARKED = ("is parked", "is", "stands")
_FLIES = ("flies", "is flying")


def _kind(
    name: str, words: str, colours: str, verbs: tuple[str, ...], *, scale: float, width: float
) -> Kind:
    pairs = [word.split("/") for word in words.split(", ")]
    return Kind(
        name=name,
        colours=tuple(colours.split()),
        words=tuple((one, many) for one, many in pairs),
        verbs=verbs,
        scale=scale,
        width=width,
    )


_ALL = (
    _kind(
        "dog",
        "dog/dogs, puppy/puppies",
        "brown black white gray orange",
        _STANDS,
        scale=0.84,
        width=1.25,
    ),
    _kind(
        "cat",
        "cat/cats, kitten/kittens",
        "brown black white gray orange",
        ("sits", "is sitting", "is"),
        scale=0.92,
        width=0.8,
    ),
    _kind(
        "horse",
        "horse/horses, pony/ponies",
        "brown brown black white gray",
        _STANDS,
        scale=1.0,
        width=1.1,
    ),
    _kind("cow", "cow/cows", "brown black white", _STANDS, scale=0.84, width=1.35),
    _kind(
        "sheep", "sheep/sheep, lamb/lambs", "white black gray brown", _STANDS, scale=0.78, width=1.3
    ),
    _kind(
        "duck",
        "duck/ducks, duckling/ducklings",
        "yellow white brown orange",
        ("is",),
        scale=0.8,
        width=1.05,
    ),
    _kind(
        "bird", "bird/birds", "red blue yellow black white green", _STANDS, scale=0.74, width=1.35
    ),
    _kind(
        "fish",
        "fish/fish",
        "orange red yellow green purple pink white",
        ("swims", "is swimming"),
        scale=0.68,
        width=1.7,
    ),
    _kind(
        "man",
        "man/men, man/men, guy/guys",
        "red blue green yellow orange purple white gray",
        _STANDS,
        scale=1.1,
        width=0.44,
    ),
    _kind(
        "woman",
        "woman/women, woman/women, lady/ladies",
        "red blue green yellow orange purple pink white",
        _STANDS,
        scale=1.1,
        width=0.46,
    ),
    _kind(
        "boy",
        "boy/boys",
        "red blue green yellow orange purple white gray",
        _STANDS,
        scale=0.92,
        width=0.56,
    ),
    _kind(
        "girl",
        "girl/girls",
        "red blue green yellow orange purple pink white",
        _STANDS,
        scale=0.92,
        width=0.6,
    ),
    _kind(
        "car",
        "car/cars",
        "red red blue green yellow white orange black purple",
        _PARKED,
        scale=0.62,
        width=2.1,
    ),
    _kind(
        "bus",
        "bus/buses",
        "red blue green yellow orange purple white",
        _PARKED,
        scale=0.78,
        width=1.75,
    ),
    _kind(
        "truck",
        "truck/trucks, lorry/lorries",
        "red blue green yellow white orange",
        _PARKED,
        scale=0.74,
        width=1.8,
    ),
    _kind(
        "bicycle",
        "bicycle/bicycles, bike/bikes",
        "red blue green yellow orange purple pink",
        _PARKED,
        scale=0.82,
        width=1.6,
    ),
    _kind(
        "boat",
        "boat/boats, boat/boats, sailboat/sailboats",
        "red blue green yellow white orange brown",
        ("sails", "floats", "is sailing", "is"),
        scale=1.1,
        width=0.98,
    ),
    _kind(
        "airplane",
        "airplane/airplanes, plane/planes",
        "white red blue yellow gray green",
        _FLIES,
        scale=0.56,
        width=2.3,
    ),
    _kind(
        "balloon",
        "hot air balloon/hot air balloons, balloon/balloons",
        "red blue green yellow orange purple pink",
        ("floats", "flies", "is"),
        scale=0.92,
        width=0.72,
    ),
    _kind(
        "tree",
        "tree/trees",
        "green green orange pink yellow",
        ("stands", "grows", "is"),
        scale=1.15,
        width=0.74,
    ),
    _kind(
        "house",
        "house/houses, house/houses, cottage/cottages",
        "red blue yellow white green brown pink",
        ("stands", "is"),
        scale=1.05,
        width=1.0,
    ),
    _kind(
        "bench",
        "bench/benches",
        "brown red green blue white",
        ("stands", "is"),
        scale=0.66,
        width=1.7,
    ),
    _kind(
        "umbrella",
        "umbrella/umbrellas, parasol/parasols",
        "red blue green yellow orange purple pink",
        ("stands", "is"),
        scale=0.96,
        width=1.05,
    ),
    _kind(
        "flower",
        "flower/flowers",
        "red yellow pink purple white orange blue",
        ("grows", "is", "stands"),
        scale=0.98,
        width=0.6,
    ),
    _kind(
        "ball",
        "ball/balls",
        "red blue green yellow orange purple pink",
        ("lies", "is"),
        scale=0.7,
        width=1.0,
    ),
    _kind(
        "kite",
        "kite/kites",
        "red blue green yellow orange purple pink",
        _FLIES,
        scale=0.9,
        width=0.72,
    ),
    _kind("snowman", "snowman/snowmen", "white", _STANDS, scale=1.05, width=0.66),
)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _ALL}
"""Every kind by its name; the order is that of the label classes."""
