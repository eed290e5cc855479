"""The nouns that travel between rooms: items, their captions, and what a feature looks like."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from os.path import isabs
from pathlib import PurePath
from typing import Any, TypeAlias

from retrieval_engine.errors import MissingExtra, UsageError

DEFAULT_MODEL = "vlre-photo"
"""The model that is used where none is named; it ships with the package."""
DEFAULT_STORE, DEFAULT_INDEX = "embeddings", "indices/built/default"
"""Where a store and an index are where none is named."""

_SEPARATOR = re.compile(r"[/\\]")

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


class Modality(StrEnum):
    """The two sides of a store; also the prefix of their shard files."""

    IMAGES = "images"
    CAPTIONS = "captions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """One sentence about an image.

    Attributes:
        id: unique within the source, e.g. `a.jpg#0`.
        text: the sentence as the source has it; cleaning is the encoder's work.
    """

    id: str
    text: str

    @property
    def key(self) -> str:
        """Cache key of the caption: sha256 of its text as 64 hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What an image's file says about itself; None where it says nothing that can be used.

    Attributes:
        taken: when it was taken, by the camera's clock, whatever its time zone.
        camera: maker and model as people say it, e.g. `iPhone 12`.
        latitude: degrees, north is positive, in [-90, 90].
        longitude: degrees, east is positive, in [-180, 180].
        width: pixels of the upright picture.
        height: likewise.
        bytes: length of the file.
    """

    taken: datetime | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image of a source, with all its captions.

    Attributes:
        id: unique within the source and independent of the item's position in it.
        uri: where the bytes are; `sources.read_bytes(uri)` gives them in any process.
        captions: every caption of the image; none is fine.
        split: `train`, `val`, `test`, or empty when the source knows none.
        size_bytes: length of the file, or -1 where the bytes are no file of their own.
        mtime_ns: modification time of the file that holds the bytes, or -1. Uri, size and time
            together tell an unchanged image without reading it.
        version: what else tells it, such as the ETag of an object; empty for files of this machine.
        meta: whatever else the source knows, JSON values only.
        fault: why the item cannot be used, known before its bytes are read; empty for most.
        facts: what its file says about itself, once that was read; sources leave it empty.
    """

    id: str
    uri: str
    captions: tuple[Caption, ...] = ()
    split: str = ""
    size_bytes: int = -1
    mtime_ns: int = -1
    version: str = ""
    meta: Mapping[str, Json] = field(default_factory=dict)
    fault: str = ""
    facts: ImageFacts = ImageFacts()

    @property
    def folder(self) -> str | None:
        """The folder it lies in: below its source, as in `2023/holiday`; else that folder's name.

        None for what lies in no folder.
        """
        # Paths are slow to make, and most items need one at most.
        if _SEPARATOR.search(self.id) and "://" not in self.id:
            place = PurePath(self.id)
            if not place.is_absolute() and place.parent.name:
                return place.parent.as_posix()
        if not isabs(self.uri):
            return None
        file = PurePath(self.uri)
        return file.parent.name or None if file.is_absolute() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """The form of one named array that an encoder emits for each image or caption.

    Attributes:
        name: `itc`, `pooled`, `tokens`, …
        shape: shape of one row, without the leading item axis.
        dtype: NumPy name of the dtype it is kept in, e.g. `float16`.
        fingerprint: of those parts of the encoder alone that decide this feature. An adapter
            on the text tower changes the captions' fingerprints and leaves the images' as
            they are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One item that could not be encoded, and why.

    Attributes:
        source: name of the source the item is from.
        item_id: its id there.
        uri: where its bytes are.
        reason: one line for people.
    """

    source: str
    item_id: str
    uri: str
    reason: str

    @classmethod
    def of(cls, item: Item, source: str, reason: str) -> "Failure":
        """The failure of an item of a source."""
        return cls(source=source, item_id=item.id, uri=item.uri, reason=reason)


@dataclass(frozen=True, slots=True)
class JobShard:
    """One of several shares of a job: the items whose ids say so, wherever they stand in a source.

    Attributes:
        number: 1 to `count`.
        count: how many shares there are.

    Raises:
        UsageError: there is no such share.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        """Refuse what is none of them."""
        if not 1 <= self.number <= self.count:
            many = self.count > 1
            raise UsageError(
                f"there is no shard {self}",
                hint=f"shards of {self.count} are 1/{self.count} to {self.count}/{self.count}"
                if many
                else "write N/COUNT, from 1/COUNT to COUNT/COUNT: 3/64",
            )

    def __str__(self) -> str:
        """As people write it: `3/64`."""
        return f"{self.number}/{self.count}"

    @classmethod
    def of(cls, text: str) -> "JobShard":
        """The share that a text such as `3/64` names.

        Raises:
            UsageError: it names none.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if not found:
            raise UsageError(f"{text!r} is no shard", hint="write N/COUNT, e.g. 3/64")
        return cls(int(found[1]), int(found[2]))

    def holds(self, item_id: str) -> bool:
        """Whether an item is of this share."""
        return share_of(item_id, self.count) == self.number


def share_of(item_id: str, count: int) -> int:
    """Number of the share that an item is of: sha256 of its id, its first 8 bytes mod `count`, + 1."""
    start = hashlib.sha256(item_id.encode(errors="surrogatepass")).digest()[:8]
    return int.from_bytes(start) % count + 1


def data_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a pandas DataFrame, a column for each name.

    Raises:
        MissingExtra: pandas is not installed.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise MissingExtra("pandas", "data") from error
    return pd.DataFrame(list(rows))
