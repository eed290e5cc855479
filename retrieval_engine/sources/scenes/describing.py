"""Five sentences about a scene, from a word or two to everything that can be seen."""

from retrieval_engine.sources.scenes.cast import Dice, Thing
from retrieval_engine.sources.scenes.catalogue import KINDS
from retrieval_engine.sources.scenes.phrases import BEHIND, LIGHT, ON, OVER
from retrieval_engine.sources.scenes.vocabulary import PEOPLE
from retrieval_engine.sources.scenes.world import World

LONGEST = 30  # words; BLIP reads 35 tokens, with the first and the last

_WEARS = {"man": "shirt", "woman": "dress", "boy": "shirt", "girl": "dress"}
_DOES = {"riding": "rides", "flying": "flies", "holding": "holds", "walking": "walks"}
_FLIES = ("flies", "is flying")


def captions(world: World) -> tuple[str, str, str, str, str]:
    """Five captions, each true of the picture, from the shortest to the most detailed.

    Returns:
        An object; an object in its place; an object with its colour and place or light; what is
        going on; everything.
    """
    dice = Dice(f"{world.seed}/{world.index}/captions")
    teller = _Teller(world, dice)
    return (
        teller.object(),
        teller.object_in_place(),
        teller.object_in_colour(),
        teller.event(),
        teller.everything(),
    )


def detailed(world: World) -> str:
    """The fifth caption alone."""
    return captions(world)[-1]


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


class _Teller:
    """Says what is in one scene."""

    def __init__(self, world: World, dice: Dice) -> None:
        self.world, self.dice = world, dice
        self.things = world.things
        self.main = self.things[world.main]

    # Parts of sentences

    def count(self, thing: Thing) -> int:
        return sum(other.kind == thing.kind for other in self.things)

    def in_air(self, thing: Thing) -> bool:
        return thing.pose == "fly"

    def name(self, thing: Thing, *, colour: bool) -> str:
        """`a dog`, `a brown puppy`, `two brown dogs`, `a girl in a red dress`."""
        one, many = self.dice.pick(KINDS[thing.kind].words)
        two = self.count(thing) == 2
        noun, after = (many if two else one), ""
        if colour and thing.kind in PEOPLE:
            worn = f"{thing.colour} {_WEARS[thing.kind]}"
            plural = "es" if worn.endswith("s") else "s"
            after = f" in {worn}{plural}" if two else f" in {_a(worn)}"
            if self.dice.chance(0.15):
                after = f" wearing {thing.colour}"
        elif colour and thing.kind == "tree" and self.dice.chance(0.4):
            after = f" with {thing.colour} leaves"
        elif colour:
            noun = f"{thing.colour} {noun}"
        if two:
            return f"two {noun}{after}"
        return _a(noun) + after

    def ground(self, thing: Thing) -> str:
        places = OVER if self.in_air(thing) else ON
        place = self.dice.pick(places[self.world.ground])
        if thing.kind == "fish":
            return "in the water"
        return place

    def light(self) -> str:
        return self.dice.pick(LIGHT[self.world.sky])

    def behind(self) -> str:
        """`with hills behind`, or nothing when nothing is there."""
        seen = [name for name in self.world.backdrop if name in ("hills", "mountains", "buildings")]
        seen += [name for name in self.world.backdrop if name == "sea" and self.dice.chance(0.3)]
        above = [name for name in self.world.backdrop if name.endswith("moon")]
        above += [name for name in self.world.backdrop if name == "falling snow"]
        if self.world.sky == "day":
            above += [name for name in self.world.backdrop if name == "clouds"]
        parts = []
        if seen:
            parts.append(f"{self.dice.pick(BEHIND[seen[0]])} behind")
        if above:
            what = self.dice.pick(BEHIND[above[0]])
            parts.append(what if "falling" in what else f"{what} above")
        return f" with {' and '.join(parts)}" if parts else ""

    def verb(self, thing: Thing) -> str:
        verb = self.dice.pick(_FLIES if self.in_air(thing) else KINDS[thing.kind].verbs)
        if self.count(thing) == 2:
            if verb.startswith("is"):
                return "are" + verb[2:]
            return {"flies": "fly", "lies": "lie"}.get(verb, verb.removesuffix("s"))
        return verb

    def anyone(self) -> Thing:
        """Mostly the main thing, sometimes another."""
        return self.main if self.dice.chance(0.6) else self.dice.pick(self.things)

    def bond(self) -> tuple[Thing, str, Thing] | None:
        for a, verb, b in self.world.bonds:
            if verb in _DOES:
                return self.things[a], verb, self.things[b]
        return None

    # The five levels

    def object(self) -> str:
        thing = self.anyone()
        name = self.name(thing, colour=self.dice.chance(0.3))
        form = self.dice.number(8)
        if form == 0:
            return f"there {'are' if self.count(thing) == 2 else 'is'} {name}"
        if form == 1:
            return f"a picture of {name}"
        return name

    def object_in_place(self) -> str:
        thing = self.anyone()
        name = self.name(thing, colour=False)
        where = self.ground(thing) if self.dice.chance(0.7) else self.light()
        form = self.dice.number(6)
        if form == 0:
            return f"{name} {self.verb(thing)} {where}"
        if form == 1:
            return f"there {'are' if self.count(thing) == 2 else 'is'} {name} {where}"
        return f"{name} {where}"

    def object_in_colour(self) -> str:
        thing = self.anyone()
        name = self.name(thing, colour=True)
        where = self.ground(thing)
        light = f" {self.light()}" if self.dice.chance(0.5) else ""
        form = self.dice.number(6)
        if form == 0:
            return f"{name} {self.verb(thing)} {where}{light}"
        if form == 1:
            return f"there {'are' if self.count(thing) == 2 else 'is'} {name} {where}{light}"
        return f"{name} {where}{light}"

    def event(self) -> str:
        """Two of the things, or what someone does, with the place or the light."""
        bond = self.bond()
        place = self.ground(self.main)
        where = self.dice.pick((place, place, self.light(), f"{place} {self.light()}"))
        colour = self.dice.chance(0.3)
        if bond:
            actor, verb, other = bond
            said = verb if self.dice.chance(0.7) else _DOES[verb]
            who = self.name(actor, colour=False)
            return f"{who} {said} {self.name(other, colour=colour)} {where}"
        others = [t for t in self.things if t.kind != self.main.kind]
        if not others:
            light = self.light()
            return f"{self.name(self.main, colour=colour)} {place} {light}"
        other = self.dice.pick(others)
        a, b = self.name(self.main, colour=colour), self.name(other, colour=colour)
        if self.in_air(other):
            return f"{a} {where} and {b} in the sky"
        return f"{a} {self.dice.pick(('and', 'next to', 'beside', 'near'))} {b} {where}"

    def everything(self) -> str:
        bond = self.bond()
        subject = self.name(self.main, colour=True)
        told = [self.main]
        standing = [t for t in self.things if not self.in_air(t)]
        if bond:
            said = f"{subject} {bond[1]} {self.name(bond[2], colour=True)}"
            told.append(bond[2])
        else:
            said = subject
        said += self.companion([t for t in standing if t not in told], told)
        flyers = [t for t in self.things if self.in_air(t) and t not in told][:1]
        return self.sentence(said, bool(bond), flyers)

    def companion(self, others: list[Thing], told: list[Thing]) -> str:
        others = [t for t in others if t.kind != self.main.kind]
        if not others:
            return ""
        other = others[0]
        told.append(other)
        name = self.name(other, colour=True)
        if self.dice.chance(0.4) and len(told) == 2:
            side = "left" if self.main.x < other.x else "right"
            return f" to the {side} of {name}"
        return f" {self.dice.pick(('and', 'next to', 'beside'))} {name}"

    def sentence(self, said: str, busy: bool, flyers: list[Thing]) -> str:
        """The subject, the rest, and the backdrop where there is room for it."""
        place, light = self.ground(self.main), self.light()
        many = self.count(self.main) == 2 or " and " in said
        above = ""
        if flyers:
            how = self.dice.pick(("in the sky", "overhead", "in the air"))
            above = f" and {self.name(flyers[0], colour=True)} {how}"
        form, verb = self.dice.number(4), "are" if many else "is"
        told = f"{said} {place} {light}{above}"
        if form == 0:
            told = f"{light} {said} {place}{above}"
        elif form == 1 and not busy:
            told = f"there {verb} {told}"
        elif form == 2 and not busy and " of " not in said:
            told = f"{said} {verb} {place} {light}{above}"
        whole = told + self.behind()
        return whole if len(whole.split()) <= LONGEST else told
