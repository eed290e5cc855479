"""`folder:PATH`: every picture under a folder, with captions where there are some.

    folder:photos?glob=**/*.jpg        only paths that match, relative to the folder
    folder:photos?split_from=folder    top-level folders train, val, test name the split
    folder:photos?split=val            only items of this split

An item's id is its path relative to the folder. Captions come from `a.txt` or `a.jpg.txt` beside
`a.jpg` (one on each line), and from a `captions.jsonl`, `.csv` or `.txt` in any folder, whose names
are relative to that folder or to its `images/`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, replace

from retrieval_engine.errors import SourceEmpty, SourceError, UsageError
from retrieval_engine.records import Item
from retrieval_engine.sources.annotated import merge
from retrieval_engine.sources.annotation import Record, composed, image_name
from retrieval_engine.sources.caption_files import read_records
from retrieval_engine.sources.cleaning import CleanedSource
from retrieval_engine.sources.decode import picture_suffixes
from retrieval_engine.sources.image_folder import size_and_time
from retrieval_engine.sources.reading import MAX_TEXT, decode_text, read_whole, split_lines
from retrieval_engine.sources.source_name import (
    Options,
    existing_directory,
    named_place,
    split_name,
)
from retrieval_engine.sources.walk import UNREADABLE, PictureFile, Walk, path_matcher
from retrieval_engine.urls import Entry, Place

_CAPTION_FILES = ("captions.jsonl", "captions.csv", "captions.txt")
_SHOWN = 10


def open_source(argument: str, options: Mapping[str, str]) -> "FolderSource":
    """Every picture under a folder.

    Args:
        argument: path of the folder.
        options: `glob`, `split`, `split_from=folder`.

    Raises:
        UsageError: an option is unknown or has no such value.
        SourceError: there is no such folder, or no picture in it.
    """
    given = Options("folder", options, ("glob", "split", "split_from"))
    if given.text("split_from", "folder") != "folder":
        raise UsageError(f"folder: split_from={given.text('split_from')}; allowed: folder")
    source = FolderSource(
        root=existing_directory(named_place(argument)),
        glob=given.text("glob", "**"),
        split=given.split(),
        split_from_folder=bool(given.text("split_from")),
    )
    walk = Walk(source.root)
    if next(source.pictures(walk), None) is None:
        if walk.skipped[UNREADABLE]:
            raise SourceError(f"{source.root} or a folder in it cannot be read")
        matching = f" that matches {given.text('glob')}" if given.text("glob") else ""
        endings = " ".join(sorted(picture_suffixes()))
        message = f"no picture in {source.root}{matching}"
        hint = f"looked for files ending in {endings}"
        if source.is_partial:
            raise SourceError(message, hint=hint)
        raise SourceEmpty(message, source=source.name, hint=hint)
    return source


class FolderSource(CleanedSource):
    """Pictures under a folder in the order of their paths; see the module for its rules.

    Only one directory's names and the caption files on the way to it are in memory.

    Args:
        root: the folder, absolute, or an address.
        glob: pattern that ids must match, `**` for all.
        split: only items of this split, or empty.
        split_from_folder: the top-level folder names the split, where no caption file does.
    """

    def __init__(self, *, root: Place, glob: str, split: str, split_from_folder: bool) -> None:
        super().__init__(f"folder:{root}", split, is_partial=glob != "**")
        self.root = root
        self._matches = path_matcher(glob)
        self._split_from_folder = split_from_folder

    def count(self) -> int | None:
        """Number of pictures; None when a split was asked for, which only reading would tell."""
        return None if self._split else sum(1 for _ in self.pictures(Walk(self.root)))

    def pictures(self, walk: Walk) -> Iterator[PictureFile]:
        """The picture files that match, without looking into any."""
        return (picture for picture in walk.pictures() if self._matches(picture.id))

    def _items(self) -> Iterator[Item]:
        self.notes.clear()
        walk = Walk(self.root, used=frozenset(_CAPTION_FILES))
        captions = _FolderCaptions(self.root)
        for picture in walk.pictures():
            records = captions.take(picture.id)  # also of those that do not match: they are there
            if self._matches(picture.id):
                yield self._item(picture, records)
        # what is in a folder that cannot be read is not gone
        self.is_partial = self.is_partial or walk.unread
        self.notes += [*walk.notes(), *captions.notes()]

    def _item(self, picture: PictureFile, records: list[Record]) -> Item:
        entry = picture.entry
        if isinstance(entry, Entry):
            size_bytes, mtime_ns, version = astuple(entry.state())
        else:
            (size_bytes, mtime_ns), version = size_and_time(entry.path), ""
        found = Item(
            id=picture.id,
            uri=entry.path,
            split=self._folder_split(picture.id),
            size_bytes=size_bytes,
            mtime_ns=mtime_ns,
            version=version,
        )
        said = [*(_beside(picture.id, text) for text in picture.texts), *records]
        if not said:
            return found
        item = merge(said, item_id=picture.id)
        return replace(
            found,
            captions=item.captions,
            split=item.split or found.split,
            meta=item.meta,
            fault=item.fault,
        )

    def _folder_split(self, item_id: str) -> str:
        top, inside, _ = item_id.partition("/")
        split = split_name(top) if self._split_from_folder and inside else ""
        return split if split in {"train", "val", "test"} else ""


def _beside(item_id: str, path: Place) -> Record:
    """What the text file beside a picture says."""
    try:
        text = decode_text(read_whole(path, MAX_TEXT))
    except SourceError as error:
        return Record(image=item_id, captions=(), fault=error.message)
    captions = tuple(line.strip() for line in split_lines(text) if line.strip())
    return Record(image=item_id, captions=captions)


class _FolderCaptions:
    """The caption files of the folders on the way to the current picture."""

    def __init__(self, root: Place) -> None:
        self._root = root
        self._inside: str | None = None
        self._tables: dict[str, _Table] = {}  # by folder, the outermost first
        self._unused: list[str] = []
        self._unused_count = 0
        self._notes: list[str] = []

    def take(self, item_id: str) -> list[Record]:
        """What the caption files say about this picture; pictures come in the order of ids."""
        inside = item_id.rpartition("/")[0]
        if inside != self._inside:
            self._enter(inside)
        records: list[Record] = []
        for folder, table in self._tables.items():
            if not table.records:
                continue
            name = item_id.removeprefix(folder)
            records += table.take(name)
            first, _, rest = name.partition("/")
            if rest and first.lower() == "images":
                records += table.take(rest)
        return records

    def _enter(self, inside: str) -> None:
        parts = inside.split("/") if inside else []
        above = ["".join(f"{part}/" for part in parts[:depth]) for depth in range(len(parts) + 1)]
        for left in [folder for folder in self._tables if folder not in above]:
            self._close(left)
        self._tables = {folder: self._tables.get(folder) or self._table(folder) for folder in above}
        self._inside = inside

    def notes(self) -> list[str]:
        """Lines for people, after the last picture."""
        for folder in list(self._tables):
            self._close(folder)
        if not self._unused_count:
            return self._notes
        more = ", …" if self._unused_count > _SHOWN else ""
        names = ", ".join(self._unused) + more
        return [*self._notes, f"{self._unused_count:,} captioned images are not there: {names}"]

    def _table(self, folder: str) -> "_Table":
        place = self._root / folder
        files = [file for file in _CAPTION_FILES if (place / file).is_file()]
        self._notes += [f"{folder}{file} is not read beside {files[0]}" for file in files[1:]]
        return _Table(place, read_records(place / files[0]) if files else ())

    def _close(self, folder: str) -> None:
        left = self._tables.pop(folder)
        self._unused_count += len(left.records)
        self._unused += [folder + name for name in left.records][: _SHOWN - len(self._unused)]


class _Table:
    """What a caption file says, by the image's name as the file has it.

    Args:
        place: the folder that the names are relative to.
        records: of the file.
    """

    def __init__(self, place: Place, records: Iterable[Record]) -> None:
        self.records: dict[str, list[Record]] = {}
        self._place = place
        for record in records:
            known = self.records.setdefault(record.image, [])
            if known and (joined := known[-1].followed_by(record)):
                known[-1] = joined
            else:
                known.append(record)
        self._composed = {composed(name): name for name in self.records}

    def take(self, name: str) -> list[Record]:
        """What it says of an image; its other Unicode form counts where that names no file."""
        if name in self.records:
            return self.records.pop(name)
        other = self._composed.get(composed(image_name(name)), "")
        if other not in self.records or (self._place / other).exists():
            return []
        return self.records.pop(other)
