"""Words of captions: which carry content, what a mirror does to them, and texts true of nothing."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

# Words that say nothing about what is in a picture. Colours, numbers and places stay.
_STOP = """a an the this that these those there here it its is are was were be being been has have had
    of in on at to from by for with without into onto over under above below up down out off near
    next beside behind between against along across through around and or but while as so than
    then very some any all each both other another his her their he she they him them who which
    what where when image picture photo photograph drawing scene view front side top bottom back
    left right middle center it's you can we i my your do does doing"""
STOP_WORDS = frozenset(_STOP.split())
_WORD = re.compile(r"[a-z0-9'-]+")
_SIDES = re.compile(r"\b(left|right)\b")
# Plain words of other worlds than most pictures': half of the nonsense is made of them.
_ELSEWHERE = """theory economy invoice algebra parliament symphony database verb insurance opinion
    molecule treaty philosophy quarterly inflation grammar tax meeting software history election
    password voltage enzyme lawsuit mortgage rumor proverb calendar virtue budget journal thesis
    elephant submarine volcano pizza guitar dragon keyboard castle robot telescope penguin violin
    banana spaceship dentist laptop wizard octopus skeleton accordion cactus toaster tractor lamp
    microscope pyramid waterfall sandwich spider whale mirror staircase piano candle clock sofa
    slowly annual quantum electric invisible medieval nuclear boring legal abstract ancient
    argues calculates refunds evaporates negotiates translates compiles remembers votes hums"""
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
_SWAPPED_TOO = frozenset({"left", "right"})
_EXCHANGED = 0.5
_GLUE = ("the", "of", "a", "and", "in", "for", "is", "with")


def content_words(text: str) -> list[str]:
    """The words of a cleaned caption that say something about the picture, in order."""
    return [w for w in _WORD.findall(text) if w not in STOP_WORDS and len(w) > 1]


def mirrored(text: str) -> str:
    """The caption of the picture seen in a mirror: left and right change places."""
    return _SIDES.sub(lambda m: "right" if m[0] == "left" else "left", text)


def nonsense(rng: np.random.Generator, known: frozenset[str]) -> str:
    """A text that is true of no picture: words from elsewhere, or letters.

    Args:
        rng: decides it.
        known: words of the captions; none of them is used but articles and prepositions.
    """
    elsewhere = [w for w in _ELSEWHERE.split() if w not in known]
    words = []
    for _ in range(int(rng.integers(1, 6))):
        if rng.random() < 0.4:
            words.append(_GLUE[int(rng.integers(len(_GLUE)))])
        if rng.random() < 0.6:
            words.append(elsewhere[int(rng.integers(len(elsewhere)))])
        else:
            picks = (26 * rng.random(int(rng.integers(3, 9))) ** 1.5).astype(int)
            words.append("".join(_LETTERS[i] for i in picks))
    return " ".join(words)


class Slots:
    """Which content words stand between the same two neighbours in captions.

    They make a false caption that reads like a true one: `a ___ car` takes colours, `on the ___`
    takes places, `to the ___ of` takes sides.

    Args:
        captions: cleaned texts.
    """

    def __init__(self, captions: Iterable[str]) -> None:
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for caption in set(captions):
            words = caption.split()
            for i, slot in enumerate(_slots(words)):
                if words[i] not in STOP_WORDS or words[i] in _SWAPPED_TOO:
                    found[slot].add(words[i])
        self._words = {slot: sorted(words) for slot, words in found.items() if len(words) > 1}

    def changed(self, caption: str, rng: np.random.Generator) -> tuple[str, str] | None:
        """The caption with one word replaced, or with two words exchanged.

        Returns:
            The text and a word that is new in its place; None where no word can be replaced.
        """
        words = caption.split()
        slots = [self._words.get(slot, []) for slot in _slots(words)]
        spots = [i for i, others in enumerate(slots) if words[i] in others]
        if not spots:
            return None
        at = spots[int(rng.integers(len(spots)))]
        pairs = [i for i in spots if words[i] != words[at] and words[i] in slots[at]]
        changed = list(words)
        if pairs and rng.random() < _EXCHANGED:
            other = pairs[int(rng.integers(len(pairs)))]
            changed[at], changed[other] = words[other], words[at]
        else:
            others = [word for word in slots[at] if word != words[at]]
            changed[at] = others[int(rng.integers(len(others)))]
        return " ".join(changed), changed[at]


def _slots(words: Sequence[str]) -> list[tuple[str, str]]:
    framed = ["", *words, ""]
    return [(framed[i], framed[i + 2]) for i in range(len(words))]
