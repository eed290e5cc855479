"""What the item numbers of an index stand for: ids, places, captions and metadata.

An index keeps its own copy as an Arrow IPC file that is mapped, not loaded: a search reads the few
rows it shows, at a million items as quickly as at a thousand.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from retrieval_engine import arrow as pc
from retrieval_engine.durable import link_or_copy
from retrieval_engine.errors import IndexFailure
from retrieval_engine.records import Caption, Json, Modality
from retrieval_engine.store import Gallery, Store
from retrieval_engine.store.items import FACTS, as_indices, column_among, equal_to
from retrieval_engine.store.keys import column_keys

FILE = "items.arrow"
ADDED = "items-1.arrow"
_COLUMNS = ["source", "id", "uri", "key", "captions", "meta", "split", "size_bytes", *FACTS.names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One item as a catalogue knows it.

    Attributes:
        source: what its id is unique within.
        id: its id there.
        uri: where its bytes are.
        key: sha256 of those.
        captions: all its captions.
        meta: whatever else its source knew.
    """

    source: str
    id: str
    uri: str
    key: str
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

    def of_sources(self, names: Collection[str]) -> NDArray[np.bool_]:
        """(items,) which items are of some sources, by their names."""

    def number_of(self, item_id: str) -> int:
        """Number of the first item with an id, -1 where there is none."""

    def table(self) -> Any:
        """Columns of the items in the order of their numbers, for `store.filters.ItemFilter`."""


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
            key=gallery.keys[number],
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

    def number_of(self, item_id: str) -> int:
        """As `Catalog.number_of`."""
        return next((i for i, known in enumerate(self._gallery.ids) if known == item_id), -1)

    def of_sources(self, names: Collection[str]) -> NDArray[np.bool_]:
        """As `Catalog.of_sources`."""
        return np.fromiter((source in names for source in self._gallery.sources), bool, len(self))

    def table(self) -> Any:
        """As `Catalog.table`; read from the store anew."""
        return SavedCatalog.of_store(self._gallery.store, self._gallery.split).table()


class SavedCatalog:
    """The items of an index, in its folder.

    Args:
        table: columns source, id, uri, key, captions (list of id and text), meta (JSON text); and
            what filters can name, which indexes before 2026-11-26 lack.
        left_out: see below.

    Attributes:
        left_out: number of items of the store it was made of that are not in it, for want of the
            feature; 0 when it was opened from a folder.
    """

    def __init__(self, table: Any, left_out: int = 0) -> None:
        self._table = table
        self._shown = table.select(["source", "id", "uri", "key", "captions", "meta"])
        self.left_out = left_out

    @classmethod
    def of_store(cls, store: Store, split: str | None) -> "SavedCatalog":
        """The live items whose image features are there, numbered as in `store.gallery(split)`."""
        table = store.items(split)
        there = store.rows(Modality.IMAGES, column_keys(table["key"])) >= 0
        if not there.all():
            table = table.filter(pa.array(there))
        return cls(table.select(_COLUMNS), int((~there).sum()))

    def grown(self, store: Store, newer: Store, split: str | None) -> "SavedCatalog | None":
        """These items and newer ones behind them; None where one of those is an old one changed.

        Args:
            store: where all of them are.
            newer: the part of it that was added since.
            split: only items of this one, or of all.
        """
        table = newer.items()
        old = self._table.select(["source", "id"])
        alike = old.filter(pc.is_in(old["id"], value_set=table["id"].combine_chunks()))
        if _names(alike) & _names(table) or self._table.schema != table.select(_COLUMNS).schema:
            return None
        if split is not None:
            table = table.filter(equal_to(table["split"], split))
        keys = column_keys(table["key"])
        there = newer.rows(Modality.IMAGES, keys) >= 0
        if not there.all():  # some have the content of an old one
            there |= store.rows(Modality.IMAGES, keys) >= 0
            table = table.filter(pa.array(there))
        every = pa.concat_tables([self._table, table.select(_COLUMNS)])
        return SavedCatalog(every, int((~there).sum()))

    @classmethod
    def open(cls, folder: Path) -> "SavedCatalog":
        """The catalogue in an index folder.

        Raises:
            IndexFailure: the file is missing or is no Arrow file.
        """
        added = [folder / ADDED] if (folder / ADDED).exists() else []
        return cls(pa.concat_tables([_read(path) for path in (folder / FILE, *added)]))

    def save(self, folder: Path, *, behind: Path | None = None) -> None:
        """Write the catalogue into a folder.

        Args:
            folder: where to.
            behind: folder of one that this begins with; the larger file of it is linked.
        """
        if behind is None:
            _write(self._table, folder / FILE)
            return
        link_or_copy(behind / FILE, folder / FILE)
        linked = len(_read(behind / FILE))
        if len(self) > linked:
            _write(self._table.slice(linked), folder / ADDED)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def entries(self, numbers: Iterable[int]) -> list[Entry]:
        """As `Catalog.entries`."""
        return [self._entry(int(number)) for number in numbers]

    def _entry(self, number: int) -> Entry:
        # One row at a time: `take` would first join the chunks of each column, all of them.
        row = self._shown.slice(number, 1).to_pylist()[0]
        return Entry(
            source=row["source"],
            id=row["id"],
            uri=row["uri"],
            key=row["key"],
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

    def number_of(self, item_id: str) -> int:
        """As `Catalog.number_of`."""
        return int(pc.index(self._table["id"], item_id).as_py())

    def of_sources(self, names: Collection[str]) -> NDArray[np.bool_]:
        """As `Catalog.of_sources`."""
        return column_among(self._table["source"], names)

    def table(self) -> Any:
        """As `Catalog.table`."""
        return self._table

    def positions(self, other: "SavedCatalog") -> NDArray[np.int64]:
        """The number here of each of another catalogue's items, -1 for one that is not here.

        The same item is of the same source, and has the same id and the same content.
        """
        n, columns = len(self), ["source", "id", "key"]
        if other._table.select(columns).slice(0, n).equals(self._table.select(columns)):
            places = np.full(len(other), -1, np.int64)  # items were added and nothing else
            places[:n] = np.arange(n)
            return places
        found = pc.index_in(other._identities(), value_set=self._identities())
        return np.from_dlpack(pc.fill_null(found, -1)).astype(np.int64)

    def _identities(self) -> Any:
        """Source, id and key of every item in one string."""
        columns = [self._table[name].cast(pa.large_string()) for name in ("source", "id", "key")]
        names = pc.binary_join_element_wise(*columns, pa.scalar("\n", pa.large_string()))
        return names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names

    def take(self, numbers: NDArray[np.int64]) -> "SavedCatalog":
        """Some of the items, in the order asked."""
        if len(numbers) == len(self) and (numbers == np.arange(len(self))).all():
            return self
        return SavedCatalog(self._table.take(as_indices(numbers)), self.left_out)


def _names(table: Any) -> set[tuple[str, str]]:
    """Source and id of every item."""
    return set(zip(table["source"].to_pylist(), table["id"].to_pylist(), strict=True))


def _read(path: Path) -> Any:
    try:
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_file(file).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise IndexFailure(f"cannot read {path}: {error}", hint="build the index again") from error


def _write(table: Any, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
