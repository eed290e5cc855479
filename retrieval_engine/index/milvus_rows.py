"""A Milvus collection of rows: whose it is, written, and searched."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import FingerprintMismatch, IndexFailure
from retrieval_engine.index.grouping import Allowed, Items, PerMask, Scores
from retrieval_engine.index.milvus_server import ITEM, ROW, VECTOR, Server
from retrieval_engine.index.vectors import StoredVectors

_MOST = 16_384  # rows that a server gives in one answer
_MOST_EF = 32_768
_NAMES = 10_000  # items that one filter names
# One more row to fetch costs as much as ten more names in a filter (benchmarks/LOG.md).
_NAMES_A_ROW = 10
_ANSWERS = 1 << 18  # queries times rows of one call
_BATCH_BYTES = 4 << 20  # of one call that writes
WHOLE, HALF = "whole", "half built"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the rows of an index are, and whose they are; `collection.json` of its folder."""

    uri: str
    alias: str
    collection: str
    index_type: str
    timeout_s: float
    keep_old_s: float
    owner: str
    replaces: str
    fingerprint: str
    feature_fingerprint: str
    contents: str
    per_item: int
    dim: int
    next_key: int

    def identity(self) -> dict[str, str]:
        """What the collection must say of itself."""
        names = ("owner", "fingerprint", "feature_fingerprint", "contents", "per_item", "dim")
        return {name: str(getattr(self, name)) for name in names}


class MilvusRows:
    """Row search in a collection.

    Args:
        server: that holds it.
        place: which.
        keys: (items,) ascending key of each item.
        effort: `ef` of a graph, and `filtered_ef` under filters; none where all is compared.
        gone: keys to be deleted once no manifest names them.
    """

    def __init__(
        self,
        server: Server,
        place: Place,
        keys: NDArray[np.int64],
        effort: Mapping[str, int],
        gone: NDArray[np.int64] | None = None,
    ) -> None:
        self.server, self.place, self.keys = server, place, keys
        self.gone = np.empty(0, np.int64) if gone is None else gone
        self.set_effort(effort)
        per_item = place.per_item
        self._names = PerMask(lambda mask: keys[mask.reshape(-1, per_item)[:, 0]])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.keys) * self.place.per_item

    @property
    def dim(self) -> int:
        """Length of a row."""
        return self.place.dim

    @property
    def effort(self) -> Mapping[str, int]:
        """The search setting in force; empty where every row is compared."""
        return dict(self._effort)

    def efforts(self) -> Iterator[Mapping[str, int]]:
        """Settings to try, from quick to thorough; one empty setting where there is none."""
        if self.place.index_type == "FLAT":
            yield {}
            return
        yield from ({"ef": 1 << power} for power in range(4, 13))

    def filter_efforts(self) -> Iterator[Mapping[str, int]]:
        """The setting in force as it may be with filters, from quick to thorough."""
        yield self.effort
        if ef := self._effort.get("ef"):
            yield from ({"ef": ef, "filtered_ef": min(_MOST_EF, ef * w)} for w in (4, 16, 64))

    def set_effort(self, effort: Mapping[str, int]) -> None:
        """Put a search setting in force, for all threads."""
        self._effort = dict(effort)

    def search_rows(
        self, queries: NDArray[np.float32], fetch: int, allowed: Allowed | None = None
    ) -> tuple[Scores, Items]:
        """As `RowSearch.search_rows`; the rows of an item are allowed together.

        Few items are named in a filter. Of many, more rows are fetched than wanted, and those that
        are not allowed left out. Both are exact where every row is compared.
        """
        names = None if allowed is None else self._names(allowed)
        there = self.rows if names is None else len(names) * self.place.per_item
        best = (
            np.full((len(queries), fetch), -np.inf, np.float32),
            np.full((len(queries), fetch), -1, np.int64),
        )
        pending = np.arange(len(queries) if there and fetch else 0)
        limit = fetch if names is None else math.ceil(1.5 * fetch * self.rows / max(1, there))
        if names is None or len(names) > _NAMES_A_ROW * limit:
            while len(pending) and limit <= _MOST:
                found, cut = self._known(queries[pending], limit, "", allowed)
                kept = _best(found, fetch)
                best[0][pending], best[1][pending] = kept
                enough = (kept[1] >= 0).sum(axis=1) >= min(fetch, there)
                pending = pending[~enough & cut]
                limit = limit * 4 if limit == _MOST else min(_MOST, limit * 4)
        if len(pending):
            kept = self._in_parts(queries[pending], fetch, allowed, names)
            best[0][pending], best[1][pending] = kept
        return best

    def _in_parts(
        self,
        queries: NDArray[np.float32],
        fetch: int,
        allowed: Allowed | None,
        names: NDArray[np.int64] | None,
    ) -> tuple[Scores, Items]:
        """The best of all parts of the rows, each searched for itself."""
        per_item = self.place.per_item
        size = _NAMES if fetch <= _MOST and names is not None else max(1, _MOST // per_item)
        best = (np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))
        keys = self.keys if names is None else names
        for start in range(0, len(keys), size):
            part = keys[start : start + size]
            where = f"{ITEM} in {part.tolist()}"
            if names is None:
                where = f"{ITEM} >= {part[0]} and {ITEM} <= {part[-1]}"
            found, _ = self._known(queries, min(fetch, _MOST, len(part) * per_item), where, allowed)
            scores = np.concatenate([best[0], found[0]], axis=1)
            best = _best((scores, np.concatenate([best[1], found[1]], axis=1)), fetch)
        return best

    def _known(
        self, queries: NDArray[np.float32], limit: int, where: str, allowed: Allowed | None
    ) -> tuple[tuple[Scores, Items], NDArray[np.bool_]]:
        """(q, limit) scores and rows, -1 for what is no answer; and (q,) where more may follow."""
        scores = np.full((len(queries), limit), -np.inf, np.float32)
        found = np.full((len(queries), limit), -1, np.int64)
        step = max(1, min(256, _ANSWERS // limit))
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            self._ask(queries[some], where, scores[some], found[some])
        cut = (found[:, -1] >= 0) | (self.place.index_type != "FLAT")
        per_item = self.place.per_item
        items = np.searchsorted(self.keys, found // per_item)
        known = self.keys[np.minimum(items, len(self.keys) - 1)] == found // per_item
        rows = np.where(known & (found >= 0), items * per_item + found % per_item, -1)
        if allowed is not None:
            rows[(rows >= 0) & ~allowed[rows]] = -1
        scores[rows < 0] = -np.inf
        return (scores, rows), cut

    def _ask(self, queries: NDArray[np.float32], where: str, scores: Scores, found: Items) -> None:
        """Fill (q, limit) scores and the server's own row numbers with the answers of one call."""
        limit = scores.shape[1]
        parameters: dict[str, int] = {}
        if self.place.index_type != "FLAT":
            ef = self._effort.get("ef", 64)
            ef = self._effort.get("filtered_ef", ef) if where else ef
            parameters["ef"] = min(_MOST_EF, max(ef, limit))
        answers = self.server.call(
            "search",
            self.place.collection,
            list(queries if self.server.is_lite else queries.astype(np.float16)),
            anns_field=VECTOR,
            limit=limit,
            filter=where,
            search_params={"metric_type": "IP", "params": parameters},
        )
        for number, hits in enumerate(answers):
            scores[number, : len(hits)] = hits.distances
            found[number, : len(hits)] = hits.ids


def _best(found: tuple[Scores, Items], fetch: int) -> tuple[Scores, Items]:
    """(q, fetch) best rows, best first, what is no answer last."""
    order = np.argsort(-found[0], axis=1, kind="stable")[:, :fetch]
    scores, rows = (np.take_along_axis(each, order, 1) for each in found)
    wide = ((0, 0), (0, fetch - order.shape[1]))
    return np.pad(scores, wide, constant_values=-np.inf), np.pad(rows, wide, constant_values=-1)


def fill(server: Server, place: Place, vectors: StoredVectors) -> None:
    """Write all rows, in order, from where a killed build of the same rows had come to."""
    found, done = server.described(place.collection), 0
    wanted = {**place.identity(), "changed": None}
    if found and any(found[1].get(name) != value for name, value in wanted.items()):
        server.drop(place.collection)
        found = None
    if found is None:
        server.create(place.collection, place.dim, {**place.identity(), "state": HALF})
    else:
        done = int(found[1].get("done", 0))
    resumed, at = found is not None, 0
    for block in vectors.blocks():
        if at + len(block) > done:
            # What was written after the last note may be there or not: it is written over.
            method = "upsert" if resumed else "insert"
            write(server, place, block, at, method)
            server.mark(place.collection, {"done": str(at + len(block))})
            resumed = False
        at += len(block)


def write(
    server: Server, place: Place, block: NDArray[np.float32], first: int, method: str
) -> None:
    """Put rows into a collection, numbered from `first` on."""
    step = max(1, _BATCH_BYTES // (4 * place.dim))
    for start in range(0, len(block), step):
        rows = block[start : start + step].astype(np.float16)
        if server.is_lite:
            rows = rows.astype(np.float32)
        numbers = range(first + start, first + start + len(rows))
        named = zip(numbers, rows, strict=True)
        values = [{ROW: n, ITEM: n // place.per_item, VECTOR: row} for n, row in named]
        server.call(method, place.collection, values)


def refuse_foreign(server: Server, place: Place) -> None:
    """Refuse an alias that is not this index's, and clear away what its killed builds left."""
    found = server.described(place.alias)
    holder = found[0] if found else ""
    if found and holder != place.replaces:
        _, theirs = found
        if theirs.get("owner") != place.owner or holder == place.alias:
            raise IndexFailure(
                f"{place.alias} at {place.uri} belongs to {theirs.get('owner') or 'others'} "
                f"(collection {holder}), not to {place.owner or 'this index'}",
                hint="name another collection in the recipe's options",
            )
        if theirs["feature_fingerprint"] != place.feature_fingerprint:
            raise FingerprintMismatch(
                f"{place.alias} at {place.uri}",
                seen=theirs["fingerprint"],
                expected=place.fingerprint,
                hint="name another collection in the recipe's options",
            )
    for name in server.call("list_collections"):
        if name.startswith(f"{place.alias}_") and name not in (
            holder,
            place.replaces,
            place.collection,
        ):
            left = server.described(name)
            if left and left[1].get("owner") == place.owner and place.owner:
                server.drop(name)
