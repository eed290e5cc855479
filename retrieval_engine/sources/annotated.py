"""Items from an annotation and a folder of images, shared by all sources of that form."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from retrieval_engine.errors import SourceError
from retrieval_engine.records import Caption, Item, Json
from retrieval_engine.sources.annotation import Record
from retrieval_engine.sources.cleaning import CleanedSource
from retrieval_engine.sources.image_folder import ImageFolder, RemoteImages
from retrieval_engine.sources.reading import one_line
from retrieval_engine.sources.source_name import Options
from retrieval_engine.urls import Place

OPTIONS = ("images", "split", "captions", "allow_missing")
"""Options that a source of this form knows."""
_SHOWN = 10


def merge(records: Sequence[Record], *, item_id: str = "") -> Item:
    """One item, without a place yet, out of all that was said about one image.

    A caption keeps the number its file gives it, else it gets the next free one: `a.jpg#0`.

    Args:
        records: at least one, all of one image.
        item_id: the item's id; empty means the name in the annotation.

    Raises:
        SourceError: two records put the image into different splits.
    """
    name = item_id or records[0].image
    captions: dict[str, str] = {}
    meta: dict[str, Json] = {}
    for record in records:
        meta.update(record.meta)
        for place, text in enumerate(record.captions):
            number = record.numbers[place] if place < len(record.numbers) else ""
            while not number or number in captions:
                number = str(int(number) + 1) if number.isdecimal() else str(len(captions))
            captions[number] = text
    return Item(
        id=name,
        uri="",
        captions=tuple(Caption(id=f"{name}#{n}", text=text) for n, text in captions.items()),
        split=split_of(records, name),
        meta=meta,
        fault=next((record.fault for record in records if record.fault), ""),
    )


def split_of(records: Iterable[Record], name: str, known: str = "") -> str:
    """The one split that records of an image name, or empty.

    Args:
        records: what was said about the image.
        name: the image, for the message.
        known: its split by what was said before.

    Raises:
        SourceError: they name two.
    """
    splits = sorted({known, *(record.split for record in records)} - {""})
    if len(splits) > 1:
        raise SourceError(
            f"image {name} is in two splits: {' and '.join(splits)}",
            hint="all captions of an image belong to one split; correct the annotation",
        )
    return splits[0] if splits else ""


class _Glance(NamedTuple):
    """What a first look showed of one image."""

    split: str
    captions: int
    is_there: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Survey:
    """What a first look over the annotation showed; `captions` has their number by image."""

    found: int
    missing: tuple[str, ...]
    repeated: bool
    captions: tuple[int, ...]


class AnnotatedImages(CleanedSource):
    """A source whose annotation names image files in a folder.

    The annotation is read twice: first for names alone, so that missing images are told before
    anything is encoded, then item by item.

    Args:
        name: see `Source`.
        given: `images`, the folder; `split`, only its items; `captions`, keep the first so many of
            each image; `allow_missing`, go on without images that are not there, and note them.
        images: the folder where `given` names none.
        records: reads the annotation anew; records of one image that follow each other are one
            item. Where they do not, all are held in memory to bring them together.

    Attributes:
        missing: names of the images that are not there, filled by `items` and `count`.
    """

    def __init__(
        self,
        *,
        name: str,
        given: Options,
        images: Place,
        records: Callable[[], Iterable[Record]],
    ) -> None:
        super().__init__(name, given.split())
        self.missing: tuple[str, ...] = ()
        root = given.directory("images", images)
        self._images = ImageFolder(root) if isinstance(root, Path) else RemoteImages(root)
        self._records = records
        self._captions = given.count("captions")
        self._allow_missing = given.flag("allow_missing")
        self._survey: _Survey | None = None

    @property
    def root(self) -> Place:
        """The folder with the images."""
        return self._images.root

    def count(self) -> int:
        """Number of items whose images are there."""
        return self._look().found

    def items(self) -> Iterator[Item]:
        """Every item in the annotation's order.

        Raises:
            SourceError: images are missing and that is not allowed, or none is there.
        """
        self._look()
        return super().items()

    def _items(self) -> Iterator[Item]:
        for files, item in self._merged():
            path = self._images.find(files)
            if path is None:
                continue
            state = self._images.state(path)
            yield replace(
                item,
                uri=path,
                captions=item.captions[: self._captions or None],
                size_bytes=state.size_bytes,
                mtime_ns=state.mtime_ns,
                version=state.version,
            )

    def _merged(self) -> Iterator[tuple[tuple[str, ...], Item]]:
        """Each image's item and the files it may be."""
        if self._survey is not None and self._survey.repeated:
            together: dict[str, list[Record]] = {}
            for record in self._records():
                together.setdefault(record.image, []).append(record)
            groups: Iterable[list[Record]] = together.values()
        else:
            runs = groupby(self._records(), key=lambda record: record.image)
            groups = (list(run) for _, run in runs)
        for group in groups:
            yield group[0].files or (group[0].image,), merge(group)

    def _look(self) -> _Survey:
        if self._survey is None:
            survey = self._first_look()
            self.missing = survey.missing
            self._report(survey)
            self._survey = survey
        return self._survey

    def _first_look(self) -> _Survey:
        seen: dict[str, _Glance] = {}
        repeated = False
        for image, run in groupby(self._records(), key=lambda record: record.image):
            records = list(run)
            before = seen.get(image)
            repeated = repeated or before is not None
            seen[image] = _Glance(
                split=split_of(records, image, before.split if before else ""),
                captions=sum(len(r.captions) for r in records) + (before.captions if before else 0),
                is_there=(before is not None and before.is_there)
                or self._images.find(records[0].files or (image,)) is not None,
            )
        wanted = {
            image: glance
            for image, glance in seen.items()
            if not self._split or glance.split == self._split
        }
        return _Survey(
            found=sum(glance.is_there for glance in wanted.values()),
            missing=tuple(image for image, glance in wanted.items() if not glance.is_there),
            repeated=repeated,
            captions=tuple(glance.captions for glance in wanted.values() if glance.is_there),
        )

    def _report(self, survey: _Survey) -> None:
        if self._captions:
            kept = sum(min(count, self._captions) for count in survey.captions)
            fewer = sum(count < self._captions for count in survey.captions)
            self.notes.append(
                f"captions={self._captions}: {kept:,} of {sum(survey.captions):,} captions kept, "
                f"the first {self._captions} of each image; {fewer:,} images have fewer"
            )
        absent, root = len(survey.missing), self._images.root
        if not absent:
            return
        shown = (one_line(name) for name in survey.missing[:_SHOWN])
        names = ", ".join(shown) + (", …" if absent > _SHOWN else "")
        line = f"{absent:,} of {absent + survey.found:,} images are not in {root}: {names}"
        if not survey.found:
            raise SourceError(
                f"none of {absent:,} images is in {root}: {names}",
                hint="say where they are with `?images=DIR`",
            )
        if not self._allow_missing:
            raise SourceError(line, hint="go on without them with `allow_missing`")
        self.notes.append(line)
