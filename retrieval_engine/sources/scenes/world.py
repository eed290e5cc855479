"""What is in picture number `index` of seed `seed`, decided from these two numbers alone."""

from dataclasses import dataclass

from retrieval_engine.records import Json
from retrieval_engine.sources.scenes.cast import (
    GROUNDS,
    SKIES,
    Dice,
    Thing,
    backdrop_for,
    cast_for,
)
from retrieval_engine.sources.scenes.staging import stage
from retrieval_engine.sources.scenes.vocabulary import Ground, Sky


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that is in one picture.

    Attributes:
        seed: of the source.
        index: of the picture.
        ground: underfoot.
        sky: the light.
        backdrop: what else is behind: `hills`, `mountains`, `buildings`, `sea`, `clouds`,
            `full moon`, `crescent moon`, `falling snow`.
        things: in drawing order, farthest first.
        bonds: (subject, verb, object) with positions in `things`.
        in_air: positions in `things` of what flies.
        main: position in `things` of what captions speak of first.
    """

    seed: int
    index: int
    ground: Ground
    sky: Sky
    backdrop: tuple[str, ...]
    things: tuple[Thing, ...]
    bonds: tuple[tuple[int, str, int], ...]
    in_air: tuple[int, ...]
    main: int


def world_at(seed: int, index: int) -> World:
    """The scene with this number; the same for ever, however many are drawn."""
    dice = Dice(f"{seed}/{index}")
    ground = dice.weighted(GROUNDS)
    sky = dice.weighted(SKIES)
    backdrop = backdrop_for(ground, sky, dice)
    placed = stage(cast_for(ground, dice), ground, dice)
    return World(
        seed=seed,
        index=index,
        ground=ground,
        sky=sky,
        backdrop=backdrop,
        things=placed.things,
        bonds=placed.bonds,
        in_air=placed.in_air,
        main=placed.main,
    )


def meta(world: World) -> dict[str, Json]:
    """What is in the picture, as JSON: the item's metadata.

    Returns:
        `subjects` (names, the main one first), `counts` and `colours` by name, `relations`
        (`man riding horse`, `kite in sky`, `dog left of car`), `ground`, `sky`, `backdrop`.
    """
    ahead = sorted(range(len(world.things)), key=lambda i: (i != world.main, i))
    names = list(dict.fromkeys(world.things[i].kind for i in ahead))
    relations = [f"{world.things[a].kind} {v} {world.things[b].kind}" for a, v, b in world.bonds]
    relations += dict.fromkeys(f"{world.things[i].kind} in sky" for i in world.in_air)
    return {
        "subjects": list(names),
        "counts": {name: sum(t.kind == name for t in world.things) for name in names},
        "colours": {t.kind: t.colour for i in ahead for t in [world.things[i]]},
        "relations": list(relations),
        "ground": world.ground.value,
        "sky": world.sky.value,
        "backdrop": list(world.backdrop),
    }
