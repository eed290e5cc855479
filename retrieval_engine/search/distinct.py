"""One hit for each image, however many copies of its file the store knows."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.index import Index
from retrieval_engine.index.catalog import Catalog
from retrieval_engine.index.grouping import Allowed, Items, Scores


def distinct_top_k(
    index: Index,
    catalog: Catalog,
    queries: NDArray[np.float32],
    k: int,
    allowed: Allowed | None = None,
) -> tuple[Scores, Items]:
    """The k best images of each query, where items of equal content are one.

    Equal content has equal vectors and so equal scores. For each group the first item in the
    catalogue's order stands whose file is still there, else the first.

    Args:
        index: numbers its items as the catalogue does.
        catalog: says which items are equal.
        queries: (q, dim) float32.
        k: at least 1; more than there are items costs no more than all of them.
        allowed: (items,) which may be answers; None allows all.

    Returns:
        (q, at most k) as `Index.search`.
    """
    k = min(k, index.items) if k > 0 else k  # what is below 1 the index refuses
    tops = np.full((len(queries), k), -np.inf, np.float32)
    top_items = np.full((len(queries), k), -1, np.int64)
    pending, fetch = np.arange(len(queries)), k
    while len(pending):
        scores, items = index.search(queries[pending], fetch, allowed)
        short = []
        for row, query in enumerate(pending):
            chosen = first_of_each(catalog, items[row])[:k]
            tops[query, : len(chosen)] = scores[row, [place for place, _ in chosen]]
            top_items[query, : len(chosen)] = [item for _, item in chosen]
            # An approximate index that found no more will find no more.
            if len(chosen) < k and items[row, -1] >= 0 and fetch < index.items:
                short.append(query)
        pending, fetch = np.array(short, np.int64), min(2 * fetch, index.items)
    return tops, top_items


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
