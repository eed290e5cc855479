"""Images as a program has them, one or many: lists, tables, data sets.

What is no file yet is kept as one, whole and without loss, so that every item of a store has its
bytes somewhere: to be shown, captioned, and encoded again by another model.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import DecodeError, UsageError
from retrieval_engine.records import Caption, Item, Json
from retrieval_engine.sources.annotation import CAPTION_KEYS
from retrieval_engine.sources.image_folder import size_and_time
from retrieval_engine.sources.image_forms import FORMS, image_bytes, is_image, is_uri

NAME = "added"
"""Name of the source that images added one by one belong to."""
_IMAGE_KEYS = (
    *("image", "images", "img", "picture", "photo", "pixel_values", "path", "file"),
    *("file_name", "filename", "filepath", "file_path", "image_path", "uri", "url"),
)
_ID_KEYS = ("id", "image_id", "img_id", "key", "__key__", "file_name", "filename")


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenImage:
    """One image as it was given, with what was said of it.

    Attributes:
        image: in any form that `image_bytes` takes.
        captions: sentences about it.
        id: empty where none was given.
        meta: whatever else came with it.
    """

    image: Any
    captions: tuple[str, ...] = ()
    id: str = ""
    meta: Mapping[str, Json] = field(default_factory=dict)


def given_images(
    images: Any,
    captions: Any = None,
    ids: Iterable[str] | None = None,
    meta: Iterable[Mapping[str, Json]] | Mapping[str, Json] | None = None,
) -> Iterator[GivenImage]:
    """One image after the other out of whatever holds images.

    Args:
        images: one image or several: a list, a generator, an array (n, h, w, c), a DataFrame, a
            data set of Hugging Face or torch whose rows are images, (image, caption) or mappings.
        captions: for each image a sentence or several; one sentence for a single image.
        ids: for each image.
        meta: for each image a mapping of plain values.

    Raises:
        UsageError: lengths differ, or nothing in a row is an image.
    """
    if is_image(images) or isinstance(images, str):
        images, captions = [images], None if captions is None else [captions]
        ids = [ids] if isinstance(ids, str) else ids
        meta = [meta] if isinstance(meta, Mapping) else meta
    rows = (_row(row, number) for number, row in enumerate(_rows(images)))
    beside = [_beside("captions", captions), _beside("ids", ids), _beside("meta", meta)]
    for number, row in enumerate(rows):
        said, name, more = (_next(column, number) for column in beside)
        yield GivenImage(
            image=row.image,
            captions=_sentences(said) if said is not None else row.captions,
            id=row.id if name is None else str(name),
            meta={**row.meta, **(more or {})},
        )
    for name, column in beside:
        if name and next(column, _END) is not _END:
            raise UsageError(f"there are more `{name}` than images")


_END = object()


def _beside(name: str, column: Any) -> tuple[str, Iterator[Any]]:
    return ("", repeat(None)) if column is None else (name, iter(column))


def _next(column: tuple[str, Iterator[Any]], number: int) -> Any:
    value = next(column[1], _END)
    if value is _END:
        raise UsageError(f"there are only {number} `{column[0]}`, and more images")
    return value


def _rows(images: Any) -> Iterator[Any]:
    """The rows of a table, a data set or anything that can be walked over."""
    if hasattr(images, "columns") and hasattr(images, "itertuples"):  # a DataFrame
        names = [str(name) for name in images.columns]
        for values in images.itertuples(index=False, name=None):
            yield dict(zip(names, values, strict=True))
    elif isinstance(images, Mapping):
        keys = ", ".join(map(str, list(images)[:5]))
        raise UsageError(f"a mapping of {keys} is not images", hint="give one of its values")
    elif hasattr(images, "__iter__"):
        yield from images
    elif hasattr(images, "__getitem__") and hasattr(images, "__len__"):  # torch's map-style sets
        for number in range(len(images)):
            yield images[number]
    else:
        raise UsageError(f"{type(images).__name__} is no image", hint=f"give {FORMS}, or several")


def _row(row: Any, number: int) -> GivenImage:
    if isinstance(row, GivenImage):
        return row
    if isinstance(row, Mapping) and not row.keys() <= {"bytes", "path"}:
        return _of_mapping(row, number)
    if isinstance(row, tuple) and row:  # (image, caption), (image, label), as torchvision has them
        label = {
            f"label_{i}" if i else "label": v for i, v in enumerate(map(_plain, row[1:])) if v != ""
        }
        words = [_sentences(value) for value in row[1:] if _is_words(value)]
        if words:
            return GivenImage(image=row[0], captions=words[0])
        return GivenImage(image=row[0], meta=label)
    return GivenImage(image=row)


def _of_mapping(row: Mapping[Any, Any], number: int) -> GivenImage:
    named = {str(key).lower(): key for key in row}
    known = [named[key] for key in _IMAGE_KEYS if key in named and row[named[key]] is not None]
    if not known:
        known = [
            key for key, value in row.items() if not isinstance(value, str) and is_image(value)
        ]
    if not known:
        raise UsageError(
            f"row {number} has no image; it has: {', '.join(map(str, row))}",
            hint=f"name its column one of {', '.join(_IMAGE_KEYS)}",
        )
    said = next((named[key] for key in CAPTION_KEYS if key in named), None)
    name = next((named[key] for key in _ID_KEYS if key in named and named[key] != known[0]), None)
    left = {key: _plain(row[key]) for key in row if key not in {known[0], said, name}}
    return GivenImage(
        image=row[known[0]],
        captions=() if said is None else _sentences(row[said]),
        id="" if name is None else str(row[name]),
        meta={str(key): value for key, value in left.items() if value != ""},
    )


def _is_words(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_words, value))


def _sentences(value: Any) -> tuple[str, ...]:
    if value is None or (isinstance(value, float) and np.isnan(value)):  # pandas' empty cell
        return ()
    if isinstance(value, str):
        return (value,) if value.strip() else ()
    if isinstance(value, Mapping):
        return _sentences(value.get("raw") or value.get("text") or value.get("caption"))
    if isinstance(value, Iterable):
        return tuple(text for part in value for text in _sentences(part))
    raise UsageError(f"{value!r} is no caption", hint="a caption is a string, or several in a list")


def _plain(value: Any) -> Json:
    """A cell as JSON has it; empty for what JSON has no word for."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return ""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value) if hasattr(value, "isoformat") else ""


class GivenSource:
    """Images that a program gives, as a source; see `Source`.

    Args:
        images: from `given_images`; read once.
        folder: where images are kept that are no files yet.

    Attributes:
        name: the same for all images added so.
        notes: none.
        is_partial: always: what is not given again is not gone.
    """

    name = NAME
    is_partial = True

    def __init__(self, images: Iterable[GivenImage], folder: Path) -> None:
        self.notes: list[str] = []
        self._images = images
        self._folder = folder

    def count(self) -> int | None:
        """Number of images, where that is known."""
        return len(self._images) if isinstance(self._images, Sequence) else None

    def items(self) -> Iterator[Item]:
        """Each image as an item.

        Raises:
            UsageError: two have the same id.
        """
        seen: set[str] = set()
        for number, given in enumerate(self._images):
            item = self._item(given, f"image {number}")
            if item.id in seen:
                raise UsageError(f"two images have the id {item.id!r}")
            if given.id:  # equal content without ids is one image, given twice
                seen.add(item.id)
            yield item

    def _item(self, given: GivenImage, called: str) -> Item:
        value, fault = given.image, ""
        size, mtime = -1, -1
        if isinstance(value, str) and is_uri(value):
            uri = name = value
        elif isinstance(value, str | os.PathLike) and "://" not in os.fspath(value):
            uri = name = os.path.abspath(os.path.expanduser(os.fspath(value)))
            if os.path.isfile(uri):
                size, mtime = size_and_time(uri)
        else:
            uri, name, fault = self._kept(value, called)
        name = given.id or name
        return Item(
            id=name,
            uri=uri,
            captions=tuple(
                Caption(id=f"{name}#{n}", text=text) for n, text in enumerate(given.captions)
            ),
            size_bytes=size,
            mtime_ns=mtime,
            meta=given.meta,
            fault=fault,
        )

    def _kept(self, value: Any, called: str) -> tuple[str, str, str]:
        """Where an image that is no file is kept from now on, its name, and what is wrong."""
        try:
            data = image_bytes(value)
        except DecodeError as error:
            return "", called, error.message
        key = hashlib.sha256(data).hexdigest()
        path = self._folder / key
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)
        return str(path.absolute()), key[:16], ""
