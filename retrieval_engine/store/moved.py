"""Telling items that have moved from items that are there twice."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_engine import arrow as pc
from retrieval_engine.store.items import equal_to
from retrieval_engine.store.keys import KeyTable, column_keys, find_keys

COLUMNS = ("source", "id", "uri", "key", "captions.list.element.key")


def moved_items(table: Any, source: str, seen: Collection[str]) -> list[tuple[str, str]]:
    """Items of other sources whose files are gone, and whose content a source has now.

    An item counts as moved only when nothing is lost with it: its captions are among those of the
    items with the same content here.

    Args:
        table: live items with `source`, `id`, `uri`, `key` and the captions' keys.
        source: name of the source that was read.
        seen: ids that it has.

    Returns:
        (source, id) of each.
    """
    here = equal_to(table["source"], source)
    ours, others = table.filter(here), table.filter(pc.invert(here))
    if not len(ours) or not len(others):
        return []
    known = KeyTable(column_keys(ours["key"])).sorted
    twins = others.take(np.flatnonzero(find_keys(known, column_keys(others["key"])) >= 0))
    gone = [row for row in twins.to_pylist() if _is_gone(row["uri"])]
    if not gone:
        return []
    captions: dict[str, set[str]] = {}
    wanted = {row["key"] for row in gone}
    for row in ours.take(
        np.flatnonzero(np.isin(ours["key"].to_pylist(), list(wanted)))
    ).to_pylist():
        if row["id"] in seen:
            captions.setdefault(row["key"], set()).update(c["key"] for c in row["captions"])
    return [
        (row["source"], row["id"])
        for row in gone
        if row["key"] in captions and {c["key"] for c in row["captions"]} <= captions[row["key"]]
    ]


def _is_gone(uri: str) -> bool:
    return Path(uri).is_absolute() and not os.path.lexists(uri)
