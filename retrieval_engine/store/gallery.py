"""What search and evaluation walk over: images that have features, and their captions."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from retrieval_engine.records import Json, Modality
from retrieval_engine.store.items import (
    as_indices,
    caption_field,
    caption_spans,
    choose_split,
    live_items,
)
from retrieval_engine.store.keys import column_keys

if TYPE_CHECKING:
    from retrieval_engine.store.reader import Store


class Strings(Sequence[str]):
    """A column of strings that becomes Python objects only where it is looked at.

    Args:
        column: `pyarrow.Array` or `ChunkedArray` of strings, no nulls.
    """

    __slots__ = ("_column",)

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step == 1:
                found: list[str] = self._column.slice(start, max(0, stop - start)).to_pylist()
                return found
            return [self[i] for i in range(start, stop, step)]
        if not -len(self) <= at < len(self):
            raise IndexError(f"{at} of {len(self)} strings")
        text: str = self._column[int(at) % len(self)].as_py()
        return text

    def __iter__(self) -> Iterator[str]:
        if pa.types.is_dictionary(self._column.type):
            yield from self.shared().tolist()
            return
        for start in range(0, len(self), 10_000):
            yield from self._column.slice(start, 10_000).to_pylist()

    def take(self, places: NDArray[np.int64]) -> "Strings":
        """Some of them, in the order asked."""
        return Strings(self._column.take(as_indices(places)))

    def shared(self) -> NDArray[np.object_]:
        """(n,) all of them; equal ones are one object."""
        column = self._column
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        column = column.unify_dictionaries().combine_chunks()
        known: NDArray[np.object_] = np.array(column.dictionary.to_pylist(), object)
        places: NDArray[Any] = np.from_dlpack(column.indices)
        shared: NDArray[np.object_] = known[places]
        return shared

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Strings({self[:3]}{' …' if len(self) > 3 else ''}, {len(self)} in all)"


def some_of(values: Sequence[str], places: NDArray[np.int64]) -> Sequence[str]:
    """Some of a gallery's strings, in the order asked."""
    if isinstance(values, Strings):
        return values.take(places)
    return [values[place] for place in places.tolist()]


def shared_strings(values: Sequence[str]) -> NDArray[np.object_]:
    """(n,) a gallery's strings; equal ones are one object, as far as they are its own."""
    if isinstance(values, Strings):
        return values.shared()
    return np.array(list(values), object)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gallery:
    """Live items whose images have rows, in first-seen order, and all their captions.

    Attributes:
        store: where the features are.
        split: the split chosen, or None for all items.
        ids: (n,) item ids.
        uris: (n,) where the pictures are.
        sources: (n,) names of the sources.
        splits: (n,) splits of the items.
        keys: (n,) sha256 of the images' bytes.
        image_rows: (n,) int64 rows for `Store.read`.
        caption_ids: (m,) ids of all captions, grouped by image.
        caption_texts: (m,) their texts.
        caption_rows: (m,) int64 rows, -1 where the caption has no features (yet).
        caption_image: (m,) int64 index into the n images.
        left_out: number of live items without image features.
    """

    store: "Store"
    split: str | None
    ids: Sequence[str]
    uris: Sequence[str]
    sources: Sequence[str]
    splits: Sequence[str]
    keys: Sequence[str]
    image_rows: NDArray[np.int64]
    caption_ids: Sequence[str]
    caption_texts: Sequence[str]
    caption_rows: NDArray[np.int64]
    caption_image: NDArray[np.int64]
    left_out: int
    _meta: Sequence[str]

    @classmethod
    def of(cls, store: "Store", split: str | None = None) -> "Gallery":
        """The gallery of a store; see `Store.gallery`."""
        columns = ["source", "id", "uri", "key", "split", "captions", "meta"]
        table = choose_split(live_items(store.path, store.manifest, columns), split)
        rows = store.rows(Modality.IMAGES, column_keys(table["key"]))
        left_out = int((rows < 0).sum())
        if left_out:
            table = table.filter(pa.array(rows >= 0))
            rows = rows[rows >= 0]
        captions = table["captions"]
        return cls(
            store=store,
            split=split,
            ids=Strings(table["id"]),
            uris=Strings(table["uri"]),
            sources=Strings(table["source"].dictionary_encode()),
            splits=Strings(table["split"].dictionary_encode()),
            keys=Strings(table["key"]),
            image_rows=rows,
            caption_ids=Strings(caption_field(captions, "id")),
            caption_texts=Strings(caption_field(captions, "text")),
            caption_rows=store.rows(Modality.CAPTIONS, column_keys(caption_field(captions, "key"))),
            caption_image=np.repeat(np.arange(len(rows)), np.diff(caption_spans(captions))),
            left_out=left_out,
            _meta=Strings(table["meta"]),
        )

    def __len__(self) -> int:
        return len(self.image_rows)

    def meta(self, image: int) -> dict[str, Json]:
        """What the source knows about an image.

        Args:
            image: index into the n images.
        """
        return json.loads(self._meta[image])  # type: ignore[no-any-return]

    def only(self, images: NDArray[np.int64]) -> "Gallery":
        """Only some images, by index in ascending order, with all their captions."""
        number = np.full(len(self), -1, np.int64)
        number[images] = np.arange(len(images))
        captions = np.flatnonzero(number[self.caption_image] >= 0)
        of_images = ("ids", "uris", "sources", "splits", "keys", "_meta")
        columns: dict[str, Any] = {n: some_of(getattr(self, n), images) for n in of_images}
        return replace(
            self,
            **columns,
            image_rows=self.image_rows[images],
            caption_ids=some_of(self.caption_ids, captions),
            caption_texts=some_of(self.caption_texts, captions),
            caption_rows=self.caption_rows[captions],
            caption_image=number[self.caption_image[captions]],
        )

    def captions_of(self, image: int) -> range:
        """Indices of an image's captions among the m captions."""
        start, stop = np.searchsorted(self.caption_image, [image, image + 1])
        return range(int(start), int(stop))

    def image_blocks(
        self, feature: str, block_rows: int = 8192
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """The images' features, a block at a time.

        Args:
            feature: its name.
            block_rows: rows in a block, at least 1.

        Yields:
            The index of the block's first image and the (≤ block_rows, *shape) block in the
            dtype of the store.

        Raises:
            FeatureMissing: the store lacks the feature, or some image does.
        """
        return self._blocks(Modality.IMAGES, feature, self.image_rows, block_rows)

    def caption_blocks(
        self, feature: str, block_rows: int = 8192
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """The captions' features, a block at a time; see `image_blocks`."""
        return self._blocks(Modality.CAPTIONS, feature, self.caption_rows, block_rows)

    def _blocks(
        self, modality: Modality, feature: str, rows: NDArray[np.int64], block_rows: int
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        for start in range(0, len(rows), block_rows):
            yield start, self.store.read(modality, feature, rows[start : start + block_rows])

    def images(self, feature: str, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """(n, *shape) features of all images in one array."""
        return self.store.read(Modality.IMAGES, feature, self.image_rows).astype(dtype, copy=False)

    def captions(self, feature: str, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """(m, *shape) features of all captions in one array."""
        rows = self.store.read(Modality.CAPTIONS, feature, self.caption_rows)
        return rows.astype(dtype, copy=False)
