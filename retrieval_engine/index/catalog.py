"""What the item numbers of an index stand for: ids, places, captions and metadata.

An index keeps its own copy as an Arrow IPC file that is mapped, not loaded: a search reads the few
rows it shows, at a million items as quickly as at a thousand.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from retrieval_engine.errors import IndexFailure
from retrieval_engine.records import Caption, Json, Modality
from retrieval_engine.store import Gallery, Store
from retrieval_engine.store.keys import column_keys

FILE = "items.arrow"
_COLUMNS = ["source", "id", "uri", "key", "captions", "meta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One item as a catalogue knows it.

    Attributes:
        source: what its id is unique within.
        id: its id there.
        uri: where its bytes are.
        captions: all its captions.
        meta: whatever else its source knew.
    """

    source: str
    id: str
    uri: str
    captions: tuple[Caption, ...]
    meta: Mapping[str, Json]


class Catalog(Protocol):
    """Items by number."""

    def __len__(self) -> int:
        """Number of items."""

    def entries(self, numbers: Iterable[int]) -> list[Entry]:
        """The items with these numbers, in the order asked."""

    def contents(self, numbers: NDArray[np.int64]) -> list[str | int]:
        """What tells the images of these items apart: equal for equal bytes, and only then."""

    def image_rows(self, store: Store, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of these items' images in a store, for `Store.read`; -1 where it has none."""


class GalleryCatalog:
    """The items of a store's gallery.

    Args:
        gallery: image i of it is item number i.
    """

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery

    def __len__(self) -> int:
        return len(self._gallery)

    def entries(self, numbers: Iterable[int]) -> list[Entry]:
        """As `Catalog.entries`."""
        return [self._entry(int(number)) for number in numbers]

    def _entry(self, number: int) -> Entry:
        gallery = self._gallery
        captions = gallery.captions_of(number)
        return Entry(
            source=gallery.sources[number],
            id=gallery.ids[number],
            uri=gallery.uris[number],
            captions=tuple(
                Caption(id=gallery.caption_ids[j], text=gallery.caption_texts[j]) for j in captions
            ),
            meta=gallery.meta(number),
        )

    def contents(self, numbers: NDArray[np.int64]) -> list[str | int]:
        """As `Catalog.contents`: a store keeps equal bytes in one row."""
        rows: list[str | int] = self._gallery.image_rows[numbers].tolist()
        return rows

    def image_rows(self, store: Store, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `Catalog.image_rows`; the store is the gallery's own."""
        rows: NDArray[np.int64] = self._gallery.image_rows[numbers]
        return rows


class SavedCatalog:
    """The items of an index, in its folder.

    Args:
        table: columns source, id, uri, key, captions (list of id and text), meta (JSON text).
    """

    def __init__(self, table: Any) -> None:
        self._table = table

    @classmethod
    def of_store(cls, store: Store, split: str | None) -> "SavedCatalog":
        """The live items whose image features are there, numbered as in `store.gallery(split)`."""
        table = store.items(split)
        there = store.rows(Modality.IMAGES, column_keys(table["key"])) >= 0
        if not there.all():
            table = table.filter(pa.array(there))
        return cls(table.select(_COLUMNS))

    @classmethod
    def open(cls, folder: Path) -> "SavedCatalog":
        """The catalogue in an index folder.

        Raises:
            IndexFailure: the file is missing or is no Arrow file.
        """
        try:
            with pa.memory_map(str(folder / FILE)) as file:
                return cls(pa.ipc.open_file(file).read_all())
        except (OSError, pa.ArrowInvalid) as error:
            raise IndexFailure(
                f"cannot read {folder / FILE}: {error}", hint="build the index again"
            ) from error

    def save(self, folder: Path) -> None:
        """Write the catalogue into a folder."""
        with (
            pa.OSFile(str(folder / FILE), "wb") as file,
            pa.ipc.new_file(file, self._table.schema) as writer,
        ):
            writer.write_table(self._table)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def entries(self, numbers: Iterable[int]) -> list[Entry]:
        """As `Catalog.entries`."""
        return [self._entry(int(number)) for number in numbers]

    def _entry(self, number: int) -> Entry:
        # One row at a time: `take` would first join the chunks of each column, all of them.
        row = self._table.slice(number, 1).to_pylist()[0]
        return Entry(
            source=row["source"],
            id=row["id"],
            uri=row["uri"],
            captions=tuple(Caption(id=c["id"], text=c["text"]) for c in row["captions"]),
            meta=json.loads(row["meta"]),
        )

    def contents(self, numbers: NDArray[np.int64]) -> list[str | int]:
        """As `Catalog.contents`: the sha256 of each image."""
        return [self._table["key"][int(number)].as_py() for number in numbers]

    def image_rows(self, store: Store, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `Catalog.image_rows`, by the content of the images."""
        keys = [self._table["key"][int(number)].as_py() for number in numbers]
        return store.rows(Modality.IMAGES, keys)

    def names(self) -> set[tuple[str, str, str]]:
        """(source, id, key) of every item: tells what another catalogue has that this lacks."""
        columns = (self._table[name].to_pylist() for name in ("source", "id", "key"))
        return set(zip(*columns, strict=True))
