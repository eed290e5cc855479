"""What a store knows of the shares of jobs that are in it: which, and how far each has come."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from retrieval_engine.records import JobShard, Json


class Reached(StrEnum):
    """How far the encoding of a share has come; it never goes back."""

    BEGUN = "begun"
    ENDED = "ended"  # a pass over some items of the share: one split, the first ones, …
    WHOLE = "whole"  # a pass over all of them


_ORDER = list(Reached)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPass:
    """One share of the encoding of one source.

    Attributes:
        source: name of the source.
        shard: which share.
        reached: how far it has come.
        state: in a merged store, a digest of what the store held that this came from; else empty.
    """

    source: str
    shard: JobShard
    reached: Reached = Reached.BEGUN
    state: str = ""

    def to_json(self) -> dict[str, Json]:
        """As `manifest.json` has it."""
        value: dict[str, Json] = {"source": self.source, "shard": str(self.shard)}
        value["reached"] = str(self.reached)
        return {**value, "state": self.state} if self.state else value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ShardPass":
        """What `to_json` gave.

        Raises:
            KeyError, ValueError: it is none.
        """
        return cls(
            source=str(value["source"]),
            shard=JobShard.of(str(value["shard"])),
            reached=Reached(value["reached"]),
            state=str(value.get("state", "")),
        )


def with_passes(known: Iterable[ShardPass], new: Iterable[ShardPass]) -> tuple[ShardPass, ...]:
    """What is known after more has become known; the later state counts."""
    after = {(entry.source, entry.shard): entry for entry in known}
    for entry in new:
        before = after.get((entry.source, entry.shard), entry)
        reached = max(before.reached, entry.reached, key=_ORDER.index)
        after[entry.source, entry.shard] = replace(entry, reached=reached)
    return tuple(after.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The encoding of a source in shares, as far as a store has it.

    Attributes:
        source: name of the source.
        count: how many shares there are.
        missing: numbers of those that the store has nothing of.
        unfinished: numbers of those whose encoding did not come to its end.
    """

    source: str
    count: int
    missing: tuple[int, ...]
    unfinished: tuple[int, ...]

    def to_json(self) -> dict[str, Json]:
        """For `--json`."""
        return {
            "source": self.source,
            "shards": self.count,
            "missing": list(self.missing),
            "unfinished": list(self.unfinished),
        }

    def __str__(self) -> str:
        """For people: `7 of 8 shards of folder:/photos; 5/8 is missing`, or `shard 3/8 of …`."""
        there = self.count - len(self.missing)
        if there == 1 and self.missing:
            [number] = set(range(1, self.count + 1)) - set(self.missing)
            said = f"shard {number}/{self.count} of {self.source}"
            return f"{said}, unfinished" if self.unfinished else said
        said = f"{there} of {self.count} shards of {self.source}"
        for numbers, what in ((self.missing, "missing"), (self.unfinished, "unfinished")):
            if numbers:
                verb = "is" if len(numbers) == 1 else "are"
                said += f"; {', '.join(f'{n}/{self.count}' for n in numbers)} {verb} {what}"
        return said


def jobs_of(passes: Iterable[ShardPass]) -> list[Job]:
    """The jobs that a store has shares of, in the order of their first ones."""
    found: dict[tuple[str, int], dict[int, Reached]] = {}
    for entry in passes:
        shares = found.setdefault((entry.source, entry.shard.count), {})
        shares[entry.shard.number] = entry.reached
    return [
        Job(
            source=source,
            count=count,
            missing=tuple(n for n in range(1, count + 1) if n not in shares),
            unfinished=tuple(n for n in sorted(shares) if shares[n] is Reached.BEGUN),
        )
        for (source, count), shares in found.items()
    ]
