"""How places, lights and backdrops are said: shared by the captions and by what reads them.

One table, so that a caption cannot use words that `truth.py` does not understand.
"""

from collections.abc import Mapping

from retrieval_engine.sources.scenes.vocabulary import Ground, Sky

ON: Mapping[Ground, tuple[str, ...]] = {
    Ground.GRASS: (
        "on grass",
        "on the grass",
        "on the grass",
        "on the lawn",
        "in a meadow",
        "on green grass",
        "in the grass",
        "in a green field",
    ),
    Ground.SAND: (
        "on the beach",
        "on the beach",
        "on a beach",
        "on the sand",
        "at the beach",
        "on sand",
        "on a sandy beach",
    ),
    Ground.SNOW: (
        "in the snow",
        "in the snow",
        "on snow",
        "on the snow",
        "in a snowy field",
        "on snowy ground",
    ),
    Ground.WATER: (
        "on the water",
        "on the water",
        "in the water",
        "on the sea",
        "at sea",
        "on a lake",
        "on water",
    ),
    Ground.STREET: (
        "on the street",
        "on the street",
        "on the road",
        "on a street",
        "in the street",
        "on a road",
    ),
}
"""Where things on the ground are."""

OVER: Mapping[Ground, tuple[str, ...]] = {
    Ground.GRASS: ("over the grass", "above the grass", "over a meadow", "over a green field"),
    Ground.SAND: ("over the beach", "above the beach", "over the sand", "at the beach"),
    Ground.SNOW: ("over the snow", "above the snow", "over a snowy field"),
    Ground.WATER: ("over the water", "above the water", "over the sea", "over a lake"),
    Ground.STREET: ("over the street", "above the street", "over a road"),
}
"""Where things in the air are."""

LIGHT: Mapping[Sky, tuple[str, ...]] = {
    Sky.DAY: (
        "on a sunny day",
        "under a blue sky",
        "during the day",
        "in the daytime",
        "in the sunshine",
    ),
    Sky.CLOUDY: (
        "on a cloudy day",
        "under a cloudy sky",
        "under a gray sky",
        "on an overcast day",
    ),
    Sky.SUNSET: (
        "at sunset",
        "at sunset",
        "at dusk",
        "in the evening",
        "under an orange sky",
        "during sunset",
    ),
    Sky.NIGHT: (
        "at night",
        "at night",
        "under a starry sky",
        "under the stars",
        "in the dark",
        "on a starry night",
    ),
}

BEHIND: Mapping[str, tuple[str, ...]] = {
    "hills": ("hills", "green hills", "rolling hills"),
    "mountains": ("mountains",),
    "buildings": ("buildings", "tall buildings", "the city"),
    "sea": ("the sea", "the ocean"),
    "full moon": ("a full moon",),
    "crescent moon": ("a crescent moon", "a thin moon"),
    "falling snow": ("snow falling", "snowflakes falling"),
    "clouds": ("clouds", "a few clouds", "white clouds"),
}
"""What is behind or above, by the backdrop's name."""

_AT = ("on", "in", "over", "above", "across")
PLACE_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("grass", "green grass", "lawn", "meadow", "green field", "field"), "grass"),
    **dict.fromkeys(("grassy field", "park", "grassland"), "grass"),
    **dict.fromkeys(("beach", "sand", "sandy beach", "shore", "seaside"), "sand"),
    **dict.fromkeys(("snow", "snowy field", "snowy ground", "snowy", "winter"), "snow"),
    **dict.fromkeys(("water", "sea", "lake", "ocean", "at sea", "waves"), "water"),
    **{f"{where} {what}": "water" for where in _AT for what in ("the sea", "the ocean")},
    **dict.fromkeys(("street", "road", "city street"), "street"),
}
"""Words for the ground."""

LIGHT_WORDS: Mapping[str, str] = {
    **{
        phrase.removeprefix(preposition): sky.value
        for sky, phrases in LIGHT.items()
        for phrase in phrases
        for preposition in ("", "on a ", "on an ", "under a ", "under an ", "during ", "at ", "in ")
        if phrase.startswith(preposition)
    },
    **dict.fromkeys(("day", "daytime", "sunny", "sunny day", "sunshine", "clear sky"), "day"),
    **dict.fromkeys(("blue sky", "under the blue sky", "in the sun", "by day"), "day"),
    **dict.fromkeys(("cloudy", "overcast", "gray sky", "grey sky", "under a grey sky"), "cloudy"),
    **dict.fromkeys(("sunset", "the setting sun", "evening", "dusk", "orange sky"), "sunset"),
    **dict.fromkeys(("night", "nighttime", "night sky", "dark", "starry", "dark sky"), "night"),
    **dict.fromkeys(("stars", "under the night sky", "after dark", "moonlight"), "night"),
}
"""Words for the light."""

BEHIND_WORDS: Mapping[str, str] = {
    **{phrase: name for name, phrases in BEHIND.items() for phrase in phrases},
    "the sea behind": "sea",
    "the sea": "sea",
    "by the sea": "sea",
    "near the sea": "sea",
    "in front of the sea": "sea",
    "in front of the ocean": "sea",
    "the sea in the background": "sea",
    "the ocean in the background": "sea",
    "the ocean behind": "sea",
    "city": "buildings",
    "hill": "hills",
    "mountain": "mountains",
    "in falling snow": "falling snow",
    "falling snow": "falling snow",
    "under a full moon": "full moon",
    "under a crescent moon": "crescent moon",
    "under a thin moon": "crescent moon",
    "with clouds in the sky": "clouds",
}
"""Words for the backdrop."""
