"""Tells whether a sentence is true of a scene, by reading it.

A sentence becomes a set of small claims (`dog`, `brown dog`, `2 dog`, `on grass`, `sky night`,
`boy flying kite`), a scene becomes the set of everything that may be claimed of it, and the sentence
is true when the first set lies within the second. Both sets are made once, so judging a batch of
n captions against n pictures costs n^2 set comparisons of 0.1 us each.

The words understood are those of `vocabulary.py` and `phrases.py`; a sentence with another word has
no truth value, and `is_true` answers None.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from retrieval_engine.records import Json
from retrieval_engine.sources.scenes.phrases import BEHIND_WORDS, LIGHT_WORDS, PLACE_WORDS
from retrieval_engine.sources.scenes.vocabulary import COLOURS, PLURALS, WIDER, WORDS

Facts = frozenset[str]

_COUNTS = {"one": 1, "single": 1, "two": 2, "pair of": 2, "couple of": 2, "three": 3, "four": 4}
_VERBS = {
    **dict.fromkeys(("riding", "rides", "ride", "on the back of", "sitting on"), "riding"),
    **dict.fromkeys(("flying", "flies", "fly"), "flying"),
    **dict.fromkeys(("holding", "holds", "under", "carrying", "carries"), "holding"),
    **dict.fromkeys(("walking", "walks", "walk"), "walking"),
    **dict.fromkeys(("to the left of", "left of", "on the left of"), "left of"),
    **dict.fromkeys(("to the right of", "right of", "on the right of"), "right of"),
}
_FLYERS = frozenset({"bird", "kite", "balloon", "airplane", "animal"})
_IN_SKY = ("in the sky", "in the air", "overhead", "up high")
_OF_LAST = (
    *("dress", "dresses", "shirt", "shirts", "clothes", "coat", "coats", "jacket", "jackets"),
    *("leaves", "blossoms", "foliage"),
)
_BREAKS = "and with over above near next beside by while behind in on at along across of there"
_FILLER = (
    "a an the is are to front background this it its that which who wearing wears dressed "
    "picture drawing scene image shows showing see seen standing stands stand sitting sits sit "
    "parked floating floats float sailing sails sail swimming swims swim growing grows grow lying "
    "lies lie flight small little big large young high during as some here together leash"
)


def facts(meta: Mapping[str, Json], *, mirrored: bool = False) -> Facts:
    """Everything that may be claimed of a scene.

    Args:
        meta: metadata of a scene's item.
        mirrored: of the picture flipped left to right.
    """
    found = {f"on {meta['ground']}", f"sky {meta['sky']}"}
    found |= {f"behind {name}" for name in _names(meta["backdrop"])}
    if meta["ground"] == "water":
        found.add("behind sea")
    counts, colours = _table(meta["counts"]), _table(meta["colours"])
    totals: dict[str, int] = {}
    for kind, count in counts.items():
        for name in _called(kind):
            found |= {name, f"{colours[kind]} {name}"}
            totals[name] = totals.get(name, 0) + int(str(count))
    found |= {f"{total} {name}" for name, total in totals.items()}
    found |= {f"several {name}" for name, total in totals.items() if total > 1}
    for relation in _names(meta["relations"]):
        found |= _relation_facts(relation, mirrored=mirrored)
    return frozenset(found)


def _names(value: Json) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else []


def _table(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _called(kind: str) -> list[str]:
    return [kind, *(wide for wide, kinds in WIDER.items() if kind in kinds)]


def _relation_facts(relation: str, *, mirrored: bool) -> set[str]:
    subject, rest = relation.split(" ", 1)
    verb, thing = rest.rsplit(" ", 1)
    if verb == "in":
        return {f"{name} in sky" for name in _called(subject)}
    if verb == "left of" and mirrored:
        subject, thing = thing, subject
    return {f"{a} {verb} {b}" for a in _called(subject) for b in _called(thing)}


_MEANINGS: Mapping[str, tuple[str, str]] = {
    **{word: ("pass", word) for word in _FILLER.split()},
    **{word: ("break", word) for word in _BREAKS.split()},
    **{word: ("noun", word) for word in WORDS},
    **{colour: ("colour", colour) for colour in COLOURS},
    "grey": ("colour", "gray"),
    **{word: ("count", str(n)) for word, n in _COUNTS.items()},
    **{word: ("place", f"on {place}") for word, place in PLACE_WORDS.items()},
    **{word: ("place", f"sky {light}") for word, light in LIGHT_WORDS.items()},
    **{word: ("behind", f"behind {name}") for word, name in BEHIND_WORDS.items()},
    **{word: ("of last", word) for word in _OF_LAST},
    **{word: ("verb", verb) for word, verb in _VERBS.items()},
    **{word: ("in sky", word) for word in _IN_SKY},
}
"""Every phrase that is understood: (what it does, its value)."""

_LONGEST = max(len(phrase.split()) for phrase in _MEANINGS)


@dataclass(slots=True)
class _Reader:
    """What has been read so far of a sentence, left to right."""

    claims: set[str] = field(default_factory=set)
    colour: str = ""
    count: str = ""
    noun: str = ""
    verb: str = ""

    def read(self, role: str, value: str) -> None:
        if role == "noun":
            self._noun(value)
        elif role == "colour":
            self.colour = value
        elif role == "count":
            self.count = value
        elif role == "verb":
            self._verb(value)
        elif role == "in sky" and self.noun:
            self.claims.add(f"{self.noun} in sky")
        elif role != "pass":
            self._boundary(role, value)

    def _boundary(self, role: str, value: str) -> None:
        """No colour and no verb reaches across a preposition, a place or a light."""
        self._colour_of_last()
        self.verb = ""
        if role in ("place", "behind"):
            self.claims.add(value)
        if role == "behind":
            self.noun = ""

    def _colour_of_last(self) -> None:
        """`a girl in a red dress`, `wearing red`: the colour is of the noun before it."""
        if self.colour and self.noun:
            self.claims.add(f"{self.colour} {self.noun}")
        self.colour = ""

    def _noun(self, word: str) -> None:
        name = WORDS[word]
        self.claims.add(name)
        if self.colour:
            self.claims.add(f"{self.colour} {name}")
        if self.count:
            self.claims.add(f"{self.count} {name}")
        elif word in PLURALS:
            self.claims.add(f"several {name}")
        if self.verb == "right of":
            self.claims.add(f"{name} left of {self.noun}")
        elif self.verb:
            self.claims.add(f"{self.noun} {self.verb} {name}")
        self.noun, self.colour, self.count, self.verb = name, "", "", ""

    def _verb(self, verb: str) -> None:
        if verb == "flying" and self.noun in _FLYERS:
            self.claims.add(f"{self.noun} in sky")
        elif self.noun:
            self._colour_of_last()
            self.verb = verb


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a sentence says.

    Attributes:
        atoms: its claims; all must be facts of a scene for the sentence to be true of it.
        unknown: words that are not understood; with any, there is no truth value.
    """

    atoms: Facts
    unknown: tuple[str, ...]

    def hold(self, known: Facts) -> bool:
        """Whether the sentence was understood and all its claims are facts of a scene."""
        return not self.unknown and self.atoms <= known


@lru_cache(maxsize=65536)
def parse(text: str) -> Claims:
    """Read a sentence: the longest phrase that is understood, then the next, to the end."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    reader, unknown, start = _Reader(), [], 0
    while start < len(words):
        for end in range(min(len(words), start + _LONGEST), start, -1):
            meaning = _MEANINGS.get(" ".join(words[start:end]))
            if meaning:
                reader.read(*meaning)
                start = end
                break
        else:
            unknown.append(words[start])
            start += 1
    reader.read("break", "")
    return Claims(atoms=frozenset(reader.claims), unknown=tuple(unknown))


def is_true(text: str, meta: Mapping[str, Json]) -> bool | None:
    """Whether a caption or query is true of a scene.

    Args:
        text: a sentence, or a few words.
        meta: metadata of a scene's item.

    Returns:
        None when the sentence holds a word that is not understood, or claims nothing.
    """
    claims = parse(text)
    if claims.unknown or not claims.atoms:
        return None
    return claims.hold(facts(meta))


def nouns(text: str) -> list[str]:
    """The kinds of things a text speaks of, in its order, each once: what a caption must not invent.

    Args:
        text: a sentence; words that are not understood are passed over.
    """
    words = re.findall(r"[a-z0-9]+", text.lower())
    pairs = (" ".join(words[i : i + n]) for i in range(len(words)) for n in (3, 1))
    return list(dict.fromkeys(WORDS[word] for word in pairs if word in WORDS))
