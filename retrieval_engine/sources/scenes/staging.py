"""Where the things of a scene stand: sizes and places that keep every subject large and whole."""

from dataclasses import dataclass, replace

from retrieval_engine.sources.scenes.cast import Cast, Dice, Thing
from retrieval_engine.sources.scenes.catalogue import KINDS
from retrieval_engine.sources.scenes.vocabulary import Ground

WIDEST = 0.86


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Things with their places; see `World` for the fields."""

    things: tuple[Thing, ...]
    bonds: tuple[tuple[int, str, int], ...]
    in_air: tuple[int, ...]
    main: int


def stage(cast: Cast, ground: Ground, dice: Dice) -> Staged:
    """Give everyone of a cast a place."""
    if not cast.standing:
        return _air_alone(cast, dice)
    heights = _heights(cast, dice)
    widths = [_width(cast, i, h) for i, h in enumerate(heights)]
    places = _places(widths, dice)
    things: list[Thing] = []
    bonds: list[tuple[int, str, int]] = []
    # The second, smaller one stands farther away and is drawn first.
    for i in reversed(range(len(heights))):
        kind, colour, pose = cast.standing[i]
        base = dice.between(0.84, 0.94) if i == 0 else dice.between(0.78, 0.9)
        if ground is Ground.WATER:
            base = dice.between(0.78, 0.9) - 0.04 * i
        things.append(
            Thing(
                kind=kind,
                colour=colour,
                pose=pose,
                x=places[i],
                base=base,
                height=heights[i],
                left=dice.chance(0.5),
                variant=dice.number(12),
            )
        )
    if cast.walks:
        things = [_facing(things[0], things[1].x), _facing(things[1], things[0].x)]
        bonds.append((1, "walking", 0))
    main = len(things) - 1
    if len(things) == 2 and things[0].kind != things[1].kind:
        bonds.append((0, "left of", 1) if things[0].x < things[1].x else (1, "left of", 0))
    if cast.mount:
        things, bonds, main = _mounted(things[0], cast.mount)
    if cast.held:
        person = things[main]
        aside = 0.2 * person.height * (1 if person.left else -1)
        things[main] = replace(person, x=person.x + aside)  # the canopy, not the head, is centred
        bonds.append((main, "holding", len(things)))
        things.append(_umbrella_over(things[main], cast.held))
    in_air: tuple[int, ...] = ()
    if cast.flying:
        flyer = _overhead(cast, things, dice)
        in_air = (len(things),)
        things.append(flyer)
        if cast.flown:
            things[main] = _facing(things[main], flyer.x)
            bonds.append((main, "flying", in_air[0]))
    return Staged(things=tuple(things), bonds=tuple(bonds), in_air=in_air, main=main)


def _facing(thing: Thing, x: float) -> Thing:
    return replace(thing, left=x < thing.x)


def _heights(cast: Cast, dice: Dice) -> list[float]:
    """Heights of the standing ones: the first .4-.7, a second .62-.78 of what it would be alone."""
    heights = []
    room = 0.5 if cast.held else 0.56 if cast.flying else 0.66
    base = dice.between(0.44, room)
    for i, (kind, _, _) in enumerate(cast.standing):
        share = base if i == 0 else base * dice.between(0.66, 0.8)
        wide = KINDS[kind].width if not (i == 0 and cast.held) else 1.0
        heights.append(min(share * KINDS[kind].scale, WIDEST / wide))
    if cast.mount:
        heights[0] = dice.between(0.44, 0.54)  # of the horse; the rider adds half as much
    total = sum(_width(cast, i, h) for i, h in enumerate(heights))
    room = 0.94 if len(heights) == 2 else WIDEST
    return [h * min(1.0, room / total) for h in heights]


def _width(cast: Cast, i: int, height: float) -> float:
    kind = cast.standing[i][0]
    if i == 0 and cast.mount:
        return height * KINDS["horse"].width
    if i == 0 and cast.held:
        return height
    return height * KINDS[kind].width


def _places(widths: list[float], dice: Dice) -> list[float]:
    if len(widths) == 1:
        slack = max(0.0, 0.96 - widths[0])
        return [0.02 + widths[0] / 2 + dice.between(0.0, slack)]
    slack = max(0.0, 0.96 - sum(widths))
    left_gap, middle = slack * dice.between(0.1, 0.4), slack * dice.between(0.2, 0.5)
    order = [0, 1] if dice.chance(0.5) else [1, 0]
    x = 0.02 + left_gap
    places = [0.0, 0.0]
    for i in order:
        places[i] = x + widths[i] / 2
        x += widths[i] + middle
    return places


def _mounted(rider: Thing, colour: str) -> tuple[list[Thing], list[tuple[int, str, int]], int]:
    horse = Thing(
        kind="horse",
        colour=colour,
        x=rider.x,
        base=rider.base,
        height=rider.height,
        left=rider.left,
        variant=rider.variant,
    )
    h = horse.height
    seated = Thing(
        kind=rider.kind,
        colour=rider.colour,
        pose="riding",
        x=rider.x - (-0.06 if rider.left else 0.06) * h,
        base=rider.base - 0.34 * h,
        height=0.98 * h,
        left=rider.left,
        variant=rider.variant,
    )
    return [horse, seated], [(1, "riding", 0)], 1


def _umbrella_over(person: Thing, colour: str) -> Thing:
    side = -1 if person.left else 1
    h = person.height
    return Thing(
        kind="umbrella",
        colour=colour,
        pose="held",
        x=person.x + side * 0.2 * h,
        base=person.base - 0.53 * h,
        height=0.92 * h,
        left=person.left,
        variant=person.variant,
    )


def _overhead(cast: Cast, things: list[Thing], dice: Dice) -> Thing:
    """One flyer beside the heads of those on the ground, as large as the free sky allows."""
    assert cast.flying is not None
    kind, colour, _ = cast.flying
    height = dice.between(0.3, 0.4) * KINDS[kind].scale
    wide = height * KINDS[kind].width
    spots = [wide / 2 + 0.02 + s * (0.96 - wide) / 8 for s in range(9)]
    if cast.flown:
        # A kite at the hand looks held: leave room for the string.
        person = things[-1].x
        far = [x for x in spots if abs(x - person) >= 0.3]
        spots = far or [max(spots, key=lambda x: abs(x - person))]
    roofs = [max(_clearance(x, wide, thing) for thing in things) for x in spots]
    # Free spots first, then those where the least is covered.
    best = min(roofs)
    x = dice.pick([x for x, roof in zip(spots, roofs, strict=True) if roof <= best + 0.03])
    roof = 1.0 - best  # y of the highest thing below the flyer
    lowest = min(0.5, max(height + 0.02, roof - 0.02))
    base = dice.between(max(height + 0.02, lowest - 0.1), lowest)
    left = dice.chance(0.5)
    return Thing(
        kind=kind,
        colour=colour,
        pose="fly",
        x=x,
        base=base,
        height=height,
        left=left,
        variant=dice.number(12),
    )


def _clearance(x: float, wide: float, thing: Thing) -> float:
    """How far up a thing reaches under a flyer at x; nothing there is 0.5."""
    reach = thing.height * KINDS[thing.kind].width / 2 + wide / 2
    return 1 - (thing.base - thing.height) if abs(thing.x - x) < reach else 0.5


def _air_alone(cast: Cast, dice: Dice) -> Staged:
    assert cast.flying is not None
    kind, colour, count = cast.flying
    height = min(dice.between(0.42, 0.6) * KINDS[kind].scale, WIDEST / KINDS[kind].width)
    left = dice.chance(0.5)
    if count == 2:
        height = min(height * 0.72, 0.47 / KINDS[kind].width)
    wide = height * KINDS[kind].width
    slots = [(0.02, 0.96)] if count == 1 else [(0.02, 0.48), (0.5, 0.48)]
    things = tuple(
        Thing(
            kind=kind,
            colour=colour,
            pose="fly",
            x=start + wide / 2 + dice.between(0.0, max(0.0, room - wide)),
            base=dice.between(height + 0.03, max(height + 0.05, 0.62)),
            height=height,
            left=left,
            variant=dice.number(12),
        )
        for start, room in slots
    )
    return Staged(things=things, bonds=(), in_air=tuple(range(count)), main=0)
