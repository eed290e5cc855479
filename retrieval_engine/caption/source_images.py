"""Which images are to be captioned, and what is loaded of each.

A store's images come with their stored `tokens`; a source's or a file's are looked up in the
store by the sha256 of their bytes, and encoded once where it does not know them.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.image_tokens import FEATURE, VisionStates
from retrieval_engine.progress import Progress
from retrieval_engine.records import Caption, Item, Modality
from retrieval_engine.sources import Source, open_source, read_item
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Gallery, Store

FILES = "files"
_NOT_STORED, _NOT_LOOKED_UP = -1, -2
_BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """One image that is to be captioned.

    Attributes:
        source: name of the source it is from.
        item: its id, where its bytes are, its captions and metadata.
        row: of its vision states in the store; -1 where they are not stored, -2 where only its
            bytes tell.
        home: the folder that its source was given, where it is one of files.
    """

    source: str
    item: Item
    row: int = _NOT_LOOKED_UP
    home: Path | None = None

    @property
    def name(self) -> str:
        """Source and id, which together tell this image from every other."""
        return f"{self.source}\t{self.item.id}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker has loaded of an image: a row of the store, or pixels for the model.

    Attributes:
        row: of its states in the store, or below 0.
        pixels: what each model reads; None where the row has its states.
    """

    row: int
    pixels: tuple[NDArray[np.uint8] | None, ...]


class LoadImage:
    """What a worker does with an image: it looks it up, and decodes it only where it must.

    Args:
        sides: one for each model.
    """

    def __init__(self, sides: Sequence[VisionStates]) -> None:
        self._preprocessors = [side.preprocessor for side in sides]
        self._uses_store = [side.store is not None for side in sides]
        self._store = next((side.store for side in sides if side.store), None)

    def __call__(self, image: SourceImage) -> Loaded:
        """Load one image.

        Raises:
            SourceError: its bytes cannot be had.
            DecodeError: they are no usable image.
        """
        data: bytes | None = None
        row = image.row
        if row == _NOT_LOOKED_UP and self._store is not None:
            data = read_item(image.item)
            key = hashlib.sha256(data).hexdigest()
            row = int(self._store.rows(Modality.IMAGES, [key], FEATURE)[0])
        wanted = [not (used and row >= 0) for used in self._uses_store]
        if not any(wanted):
            return Loaded(row, (None,) * len(wanted))
        # A large JPEG may be decoded smaller only where everyone who reads it allows that.
        sides = [
            p.least_side for p, needed in zip(self._preprocessors, wanted, strict=True) if needed
        ]
        least = max(sides) if all(sides) else 0
        decoded = decode(read_item(image.item) if data is None else data, least_side=least)
        pixels = (
            preprocessor.pixels(decoded) if needed else None
            for preprocessor, needed in zip(self._preprocessors, wanted, strict=True)
        )
        return Loaded(row, tuple(pixels))


def of_store(gallery: Gallery) -> Iterator[SourceImage]:
    """The images of a store, in its order."""
    store = gallery.store
    rows = np.full(len(gallery), _NOT_STORED)
    if FEATURE in store.features(Modality.IMAGES):
        stored = store.having(Modality.IMAGES, FEATURE, gallery.image_rows)
        rows = np.where(stored, gallery.image_rows, _NOT_STORED)
    for start in range(0, len(gallery), _BLOCK):
        part = slice(start, min(start + _BLOCK, len(gallery)))
        columns = (gallery.ids, gallery.uris, gallery.sources, gallery.splits)
        table = zip(*(column[part] for column in columns), strict=True)
        for number, (item_id, uri, source, own_split) in enumerate(table, start):
            captions = tuple(
                Caption(id=gallery.caption_ids[j], text=gallery.caption_texts[j])
                for j in gallery.captions_of(number)
            )
            item = Item(
                id=item_id,
                uri=uri,
                captions=captions,
                split=own_split,
                meta=gallery.meta(number),
            )
            row = int(rows[number])
            yield SourceImage(source=source, item=item, row=row, home=_home_of(source))


@lru_cache(maxsize=64)
def _home_of(source: str) -> Path | None:
    """The folder that a source's name speaks of: itself, or the one an annotation lies in."""
    path = Path(source.partition(":")[2])
    if not path.is_absolute():
        return None
    return path if path.is_dir() else path.parent


class Targets:
    """The images of files, folders and sources, one after the other.

    Args:
        targets: paths of image files or folders, or names of sources.
        split: only the items of one split; files have none.

    Raises:
        UsageError: a target is none of these.
        SourceError: a source cannot be read.
    """

    def __init__(self, targets: Sequence[str], split: str | None = None) -> None:
        self._opened = [_file(target) or open_source(target) for target in targets]
        self._split = split

    def count(self) -> int | None:
        """Number of images, where that is known before."""
        if self._split:
            return None
        counts = [1 if isinstance(t, Path) else t.count() for t in self._opened]
        return None if None in counts else sum(count or 0 for count in counts)

    def __iter__(self) -> Iterator[SourceImage]:
        for target in self._opened:
            if isinstance(target, Path):
                item = Item(id=str(target), uri=str(target.resolve()))
                yield SourceImage(source=FILES, item=item, home=target.resolve().parent)
            else:
                yield from of_source(target, self._split)


def _file(target: str) -> Path | None:
    path = Path(os.path.expanduser(target))
    return path if path.is_file() else None


def of_source(source: Source, split: str | None = None) -> Iterator[SourceImage]:
    """The images of a source, in its order."""
    home = getattr(source, "root", None)
    for item in source.items():
        if not split or item.split == split:
            yield SourceImage(source=source.name, item=item, home=home or _home_of(source.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The images that a job is asked to work on.

    Attributes:
        images: in their order; can be walked once.
        count: how many, where that is known before.
        notes: lines for people.
    """

    images: Iterable[SourceImage]
    count: int | None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        targets: Sequence[str],
        store: Store | None,
        *,
        split: str | None = None,
        limit: int | None = None,
    ) -> "Asked":
        """The images of some targets, or without them of a store.

        Args:
            targets: files, folders and sources.
            store: what is asked for when there is no target; not None then.
            split: only the items of one split.
            limit: only the first images.

        Raises:
            UsageError: a target is none of these, or no item has the split.
        """
        notes: list[str] = []
        images: Iterable[SourceImage]
        count: int | None
        if targets:
            found = Targets(targets, split)
            images, count = found, found.count()
        else:
            assert store is not None
            gallery = store.gallery(split)
            if gallery.left_out:
                notes.append(f"{gallery.left_out:,} items have no features and are left out")
            images, count = of_store(gallery), len(gallery)
        if limit:
            images = islice(images, limit)
            count = limit if count is None else min(count, limit)
        return cls(images=images, count=count, notes=tuple(notes))

    def left(
        self, is_done: Callable[[SourceImage], bool], progress: Progress
    ) -> Iterator[SourceImage]:
        """The images that still lack what is to be written; of the others `progress` is told."""
        for image in self.images:
            if is_done(image):
                progress.advance()
            else:
                yield image
