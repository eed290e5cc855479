"""Whether stores fit together, and what becomes of their items, before a byte is written."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval_engine import arrow as pc
from retrieval_engine.errors import FingerprintMismatch, StoreError
from retrieval_engine.records import Failure, Feature, Modality, share_of
from retrieval_engine.store.items import equal_to, item_numbers, live_items
from retrieval_engine.store.job_shards import Reached, ShardPass
from retrieval_engine.store.keys import column_keys
from retrieval_engine.store.reader import Store

_CONTENT = ("key", "split", "captions", "meta")
Pair = tuple[str, str]
"""Source and id of an item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPlan:
    """What becomes of the items.

    Attributes:
        taken: for each store that comes, a flag for each of its live items: whether it is written.
        replaced: number of items of the target that are written anew.
        removed: items of the target that are gone, ids by source.
        failures: what enters the target's ledger.
        settled: what leaves it.
    """

    taken: tuple[NDArray[np.bool_], ...]
    replaced: int
    removed: dict[str, list[str]]
    failures: tuple[Failure, ...]
    settled: frozenset[Pair]


def check_alike(stores: Sequence[Store]) -> None:
    """Refuse stores that are not of one encoder, or keep other features.

    Raises:
        FingerprintMismatch, StoreError: as it says; both are named.
    """
    first = stores[0]
    for other in stores[1:]:
        if other.fingerprint != first.fingerprint:
            raise FingerprintMismatch(
                f"the store {other.path}",
                seen=other.fingerprint,
                expected=first.fingerprint,
                hint=f"{first.path} is of {first.spec.checkpoint}, {other.path} of "
                f"{other.spec.checkpoint}: merge stores of one encoder",
            )
        for modality in Modality:
            here, there = first.features(modality), other.features(modality)
            for name in [n for n in {**here, **there} if here.get(n) != there.get(n)]:
                raise StoreError(
                    f"{first.path} has {_form(here.get(name))} {name} of {modality}, "
                    f"{other.path} {_form(there.get(name))}",
                    hint="encode both with the same `EncodeOptions(features=NAMES)`",
                )


def _form(feature: Feature | None) -> str:
    return f"{feature.dtype}{list(feature.shape)}" if feature else "no"


def plan_items(target: Store, came: Sequence[Store]) -> ItemPlan:
    """Compare the items of stores with each other.

    An item that is in two of them with the same content is taken once. Where it differs, it must
    come from a share of a job that the target holds in an earlier state: then the later one counts.

    Args:
        target: the store that they become; it may be empty.
        came: the stores to take in.

    Raises:
        StoreError: an item differs between two of them; the message names it, and both.
        StoreDamaged: a table of items cannot be read.
    """
    return _Planner([target, *came]).plan()


class _Planner:
    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = stores
        columns = ("source", "id", "key", "state")
        tables = [live_items(store.path, store.manifest, columns) for store in stores]
        self.tables = [table.select(["source", "id"]) for table in tables]
        self.starts = np.cumsum([0, *map(len, tables)])
        self.of = np.repeat(np.arange(len(stores)), np.diff(self.starts))
        whole = pa.concat_tables(tables)
        self.keys, self.states = column_keys(whole["key"]), _states(whole["state"])
        self.number = item_numbers(whole)
        known = {(entry.source, entry.shard) for entry in stores[0].manifest.shards}
        # Shares that the target holds in an earlier state, for each store.
        self.later: list[list[ShardPass]] = [
            [e for e in store.manifest.shards if (e.source, e.shard) in known] for store in stores
        ]

    def plan(self) -> ItemPlan:
        dropped, replaced = self._repeated()
        failures, settled = self._ledger()
        return ItemPlan(
            taken=tuple(np.split(~dropped, self.starts[1:-1])[1:]),
            replaced=replaced,
            removed=self._removed(),
            failures=failures,
            settled=settled,
        )

    def _pair(self, row: int) -> Pair:
        store = self.of[row]
        table, local = self.tables[store], int(row - self.starts[store])
        return table["source"][local].as_py(), table["id"][local].as_py()

    def _is_later(self, store: int, source: str, item_id: str) -> bool:
        return any(e.source == source and e.shard.holds(item_id) for e in self.later[store])

    def _repeated(self) -> tuple[NDArray[np.bool_], int]:
        """A flag for each row, whether another stands for it; how many take another's place."""
        order = np.argsort(self.number, kind="stable")
        again = np.flatnonzero(self.number[order[1:]] == self.number[order[:-1]])
        rows, before = order[again + 1], order[again]
        same = self.keys[rows] == self.keys[before]
        same &= (self.states[rows] == self.states[before]).all(axis=1)
        same &= self.states[rows].any(axis=1)  # zeros say nothing
        dropped = np.zeros(len(self.of), bool)
        dropped[rows[same]] = True
        replaced, unsure = 0, []
        for row, other in zip(rows[~same].tolist(), before[~same].tolist(), strict=True):
            if self.of[other] == 0 and self._is_later(self.of[row], *self._pair(row)):
                replaced += 1
            else:
                unsure.append((row, other))
        if unsure:
            self._refuse_unlike(unsure)
            dropped[[row for row, _ in unsure]] = True
        return dropped, replaced

    def _refuse_unlike(self, pairs: Sequence[tuple[int, int]]) -> None:
        content = self._content({row for pair in pairs for row in pair})
        unlike = [pair for pair in pairs if content[pair[0]] != content[pair[1]]]
        if unlike:
            row, other = unlike[0]
            source, item_id = self._pair(row)
            what = [n for n in _CONTENT if content[row][n] != content[other][n]]
            named = ["image" if name == "key" else name for name in what]
            here, there = (self.stores[self.of[r]].path for r in (row, other))
            more = f" (and {len(unlike) - 1:,} more)" if len(unlike) > 1 else ""
            raise StoreError(
                f"item {item_id!r} of {source} is not the same in {here} and in {there}: another "
                f"{' and '.join(named)}{more}",
                hint="encode the source again into the older of the two, then merge",
            )

    def _content(self, rows: Collection[int]) -> dict[int, dict[str, Any]]:
        """What is compared of rows, by their numbers."""
        found: dict[int, dict[str, Any]] = {}
        chosen = np.array(sorted(rows))
        for number in np.unique(self.of[chosen]).tolist():
            store, here = self.stores[number], chosen[self.of[chosen] == number]
            table = live_items(store.path, store.manifest, _CONTENT)
            values = table.take(here - self.starts[number]).to_pylist()
            found |= dict(zip(here.tolist(), values, strict=True))
        return found

    def _removed(self) -> dict[str, list[str]]:
        """Items that the target alone has, of shares that came whole without them."""
        mine = self.number[: self.starts[1]]
        alone = self.tables[0].filter(np.bincount(self.number, minlength=1)[mine] == 1)
        removed: dict[str, list[str]] = {}
        for (source, count), shares in self._whole().items():
            ids = alone.filter(equal_to(alone["source"], source))["id"].to_pylist()
            gone = [item_id for item_id in ids if share_of(item_id, count) in shares]
            removed[source] = list(dict.fromkeys([*removed.get(source, ()), *gone]))
        return removed

    def _whole(self) -> dict[tuple[str, int], set[int]]:
        """Numbers of the shares that came whole, and whose earlier state the target holds."""
        found: dict[tuple[str, int], set[int]] = {}
        for entry in (entry for later in self.later[1:] for entry in later):
            if entry.reached is Reached.WHOLE:
                found.setdefault((entry.source, entry.shard.count), set()).add(entry.shard.number)
        return found

    def _ledger(self) -> tuple[tuple[Failure, ...], frozenset[Pair]]:
        """What enters the ledger, and what leaves it: who is encoded somewhere has not failed."""
        ledgers = [store.failures() for store in self.stores]
        failed = {(f.source, f.item_id) for ledger in ledgers for f in ledger}
        if not failed:
            return (), frozenset()
        live = [_among(table, failed) for table in self.tables]
        entering = []
        for number, ledger in enumerate(ledgers[1:], 1):
            for failure in ledger:
                pair = (failure.source, failure.item_id)
                others = [n for n in range(len(live)) if n != number and pair in live[n]]
                if 0 in others and self._is_later(number, *pair):
                    others.remove(0)
                if not others:
                    entering.append(failure)
        whole = self._whole().items()
        mine = {(failure.source, failure.item_id) for failure in ledgers[0]}
        gone = {
            (source, item_id)
            for source, item_id in mine
            if any(source == of and share_of(item_id, n) in shares for (of, n), shares in whole)
        }
        return tuple(entering), frozenset((mine & set().union(*live[1:])) | gone)


def _among(table: Any, pairs: Collection[Pair]) -> set[Pair]:
    """Those of some items that a table has."""
    ids = pa.array(sorted({item_id for _, item_id in pairs}), pa.large_string())
    found = table.filter(pc.is_in(table["id"], ids)).to_pylist()
    return {(row["source"], row["id"]) for row in found} & set(pairs)


def _states(column: Any) -> NDArray[np.uint64]:
    """(n, 2) the 16 bytes of each row."""
    parts = [
        np.frombuffer(c.buffers()[1], np.uint64).reshape(-1, 2)[c.offset :][: len(c)]
        for c in column.chunks
        if len(c)
    ]
    return np.concatenate([np.empty((0, 2), np.uint64), *parts])
