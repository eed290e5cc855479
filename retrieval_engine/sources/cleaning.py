"""What every item passes on its way out of a source, so that no item can end a whole run.

Text that no UTF-8 can hold and numbers that no JSON can hold come in through JSON's escapes, names
in archives and NaN. Here they become U+FFFD and null, are counted, and go on.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from retrieval_engine.errors import SourceError
from retrieval_engine.records import Item, Json

if TYPE_CHECKING:
    from retrieval_engine.sources import Source

LOST = "\N{REPLACEMENT CHARACTER}"
_DEEPEST = 32


class CleanedSource(ABC):
    """A source whose items are cleaned on their way out, and are those of its split alone.

    Args:
        name: see `Source`.
        split: only items of this split, or empty.
        is_partial: other options leave items out that the name covers.

    Attributes:
        name: as given.
        notes: lines for people about what was found and left out, whole when all items were read.
        is_partial: options leave items out that the name covers; their absence means nothing.
    """

    def __init__(self, name: str, split: str, *, is_partial: bool = False) -> None:
        self.name = name
        self.notes: list[str] = []
        self.is_partial = bool(split) or is_partial
        self._split = split

    @abstractmethod
    def count(self) -> int | None:
        """See `Source.count`."""

    @abstractmethod
    def _items(self) -> Iterator[Item]:
        """Every item as it is read, of all splits."""

    def items(self) -> Iterator[Item]:
        """Every item of the split, in the source's order; see `passed`.

        Raises:
            SourceError: what is read makes no sense, or no item is in the split.
        """
        return passed(self._items(), self, self._split)


def passed(items: Iterable[Item], source: "Source", split: str = "") -> Iterator[Item]:
    """Those items that are in this split, or all when it is empty, cleaned.

    Args:
        items: as read.
        source: after the last item its notes say what was replaced.
        split: a split, or empty.

    Raises:
        SourceError: after the last item, when none was in the split; it names those there are.
    """
    found = False
    characters = captions = 0
    seen: dict[str, int] = {}
    for item in items:
        if not split or item.split == split:
            found = True
            item = clean_item(item)
            lost = [caption.text.count(LOST) for caption in item.captions]
            characters, captions = characters + sum(lost), captions + sum(map(bool, lost))
            yield item
        seen[item.split or "(none)"] = seen.get(item.split or "(none)", 0) + 1
    if split and not found:
        there = ", ".join(f"{name} {count:,}" for name, count in sorted(seen.items()))
        raise SourceError(
            f"{source.name} has no item in split {split!r}; there are: {there or 'none'}"
        )
    note = f"{characters:,} characters of {captions:,} captions could not be read and are U+FFFD"
    if characters and note not in source.notes:
        source.notes.append(note)


def clean_item(item: Item) -> Item:
    """The item with text and metadata that UTF-8 and JSON can hold."""
    captions = item.captions
    if not captions and not item.meta and _is_clean(item.id + item.uri + item.split + item.fault):
        return item
    if any(not _is_clean(c.text) or not _is_clean(c.id) for c in captions):
        captions = tuple(replace(c, id=clean_text(c.id), text=clean_text(c.text)) for c in captions)
    fault = item.fault or ("" if _is_clean(item.uri) else "its path is not UTF-8")
    meta = {clean_text(key): clean_json(value) for key, value in item.meta.items()}
    return replace(
        item,
        id=clean_text(item.id),
        uri=clean_text(item.uri),
        captions=captions,
        split=clean_text(item.split),
        meta=meta,
        fault=clean_text(fault),
    )


def clean_text(text: str) -> str:
    """The text with U+FFFD for what is no character."""
    if _is_clean(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_json(value: Json, depth: int = 0) -> Json:
    """The value with U+FFFD for what is no character and null for NaN and infinities."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == _DEEPEST:
        return None
    if isinstance(value, list):
        return [clean_json(each, depth + 1) for each in value]
    if isinstance(value, dict):
        return {clean_text(key): clean_json(each, depth + 1) for key, each in value.items()}
    return value


def _is_clean(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
