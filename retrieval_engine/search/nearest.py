"""The images nearest to queries: one hit for each image, however many copies the store knows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import UsageError
from retrieval_engine.index import Index
from retrieval_engine.index.catalog import Catalog
from retrieval_engine.index.grouping import (
    Allowed,
    Items,
    Scores,
    late_interaction,
    merge_queries,
)
from retrieval_engine.records import Modality
from retrieval_engine.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestImages:
    """Top-k over images, where items of equal content are one.

    Equal content has equal vectors and so equal scores. For each group the first item in the
    catalogue's order stands whose file is still there, else the first.

    Attributes:
        index: numbers its items as the catalogue does.
        catalog: says which items are equal.
        store: where the images' vectors are; a query of several vectors needs it.
        feature: name of those vectors.
        allowed: (items,) which may be answers; None allows all.
    """

    index: Index
    catalog: Catalog
    store: Store | None
    feature: str
    allowed: Allowed | None = None

    def search(self, queries: Sequence[NDArray[np.float32]], k: int) -> list[tuple[Scores, Items]]:
        """The k best images of each query, best first.

        Args:
            queries: (v, d) float32 vectors of each; one where v is 1, else see `like`.
            k: at least 1; more than there are items costs no more than all of them.

        Returns:
            For each (at most k,) scores and item numbers, as `Index.search`.

        Raises:
            UsageError: a query has several vectors, and there is no store.
        """
        k = min(k, self.index.items)
        found = {n: self.like(query, k) for n, query in enumerate(queries) if len(query) > 1}
        pending = [n for n, query in enumerate(queries) if len(query) == 1]
        fetch = k
        while pending:
            single = np.concatenate([queries[n] for n in pending])
            scores, items = self.index.search(single, fetch, self.allowed)
            short = []
            for row, n in enumerate(pending):
                chosen = first_of_each(self.catalog, items[row])[:k]
                found[n] = filled(k, scores[row, [at for at, _ in chosen]], [i for _, i in chosen])
                # An approximate index that found no more will find no more.
                if len(chosen) < k and items[row, -1] >= 0 and fetch < self.index.items:
                    short.append(n)
            pending, fetch = short, min(2 * fetch, self.index.items)
        return [found[n] for n in range(len(queries))]

    def like(self, query: NDArray[np.float32], k: int) -> tuple[Scores, Items]:
        """The images most like one of several vectors (BLIP-2).

        The candidates of each of the query's vectors are ranked by late interaction, which reads
        them from the store.
        """
        if self.store is None:
            raise UsageError(
                "searching like images with several vectors each needs the store; an index alone "
                "will not do"
            )
        fetch = min(max(4 * k, 64), self.index.items)
        scores, items = self.index.search(query, fetch, self.allowed)
        _, candidates = merge_queries(scores, items, scores.size)
        rows = self.catalog.image_rows(self.store, candidates)
        candidates, rows = candidates[rows >= 0], rows[rows >= 0]
        found = late_interaction(query, self.store.read(Modality.IMAGES, self.feature, rows))
        order = np.lexsort((candidates, -found))
        chosen = first_of_each(self.catalog, candidates[order])[:k]
        return found[order[[at for at, _ in chosen]]], np.array([i for _, i in chosen], np.int64)


def filled(k: int, scores: Scores, items: Sequence[int] | Items) -> tuple[Scores, Items]:
    """(k,) scores and item numbers; places that are left hold -inf and -1."""
    all_scores, all_items = np.full(k, -np.inf, np.float32), np.full(k, -1, np.int64)
    all_scores[: len(scores)], all_items[: len(items)] = scores, items
    return all_scores, all_items


def first_of_each(catalog: Catalog, items: Items) -> list[tuple[int, int]]:
    """For each content the place of its first item in a ranked list, and the item to show.

    Args:
        catalog: says which items are equal.
        items: (n,) item numbers, best first; -1 is none.
    """
    numbers = items[items >= 0]
    groups: dict[str | int, list[int]] = {}
    places: dict[str | int, int] = {}
    for place, (content, number) in enumerate(
        zip(catalog.contents(numbers), numbers.tolist(), strict=True)
    ):
        places.setdefault(content, place)
        groups.setdefault(content, []).append(number)
    # In the order of numbers: of equal vectors one may score a rounding more than the other.
    return [(places[content], _shown(catalog, sorted(found))) for content, found in groups.items()]


def _shown(catalog: Catalog, group: Sequence[int]) -> int:
    if len(group) == 1:
        return group[0]
    for number, entry in zip(group, catalog.entries(group), strict=True):
        if not Path(entry.uri).is_absolute() or os.path.lexists(entry.uri):
            return number
    return group[0]
