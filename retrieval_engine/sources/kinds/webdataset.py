"""`webdataset:shards-{000..009}.tar`: plain tar shards with `key.jpg`, `key.txt`, `key.json`.

    webdataset:cc3m/{00000..00331}.tar        all must be there
    webdataset:cc3m/*.tar?id=shard            ids `shard/key`, where keys come back in each shard

The lines of `.txt` (or `.caption`) are the captions; without one, `caption` or `captions` of the
`.json`, whose other keys are metadata and whose `split` is the item's split. Headers alone are read
to list the items, and a picture is read from its place in the shard: `webdataset:FILE#OFFSET,SIZE`.

Every picture is an item. Its id is the sample's key, the name up to the first dot; where a sample
has several pictures, as `0.left.png` and `0.right.png` or `img.v1.0.png` and `img.v1.1.png`, the
name without its last ending (`0.jpg` beside `0.png` with it), and then `img.v1.0.txt` goes with `img.v1.0.png` alone. Members of a
sample need not follow each other.
"""

import glob
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.records import Item, Json
from retrieval_engine.sources.annotated import merge, size_and_time
from retrieval_engine.sources.annotation import CAPTION_KEYS, Record, captions_of
from retrieval_engine.sources.cleaning import clean_text, passed
from retrieval_engine.sources.decode import picture_suffixes
from retrieval_engine.sources.reading import (
    MAX_BYTES,
    MAX_TEXT,
    decode_text,
    one_line,
    open_regular,
    parse_json,
    split_lines,
)
from retrieval_engine.sources.source_name import Options, split_name

_TEXTS = (".txt", ".caption")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_BLOCK = 512
_SHOWN = 5


def open_source(argument: str, options: Mapping[str, str]) -> "WebDatasetSource":
    """Items in tar shards.

    Args:
        argument: a path with `{000..009}`, `{a,b}`, `*`.
        options: `split`, `id=shard`.

    Raises:
        UsageError: an option is unknown.
        SourceError: a shard is not there.
    """
    given = Options("webdataset", options, ("split", "id"))
    if given.text("id", "shard") != "shard":
        raise UsageError(f"webdataset: id={given.text('id')}; allowed: shard")
    return WebDatasetSource(
        name=f"webdataset:{Path(argument).expanduser().absolute()}",
        shards=_shards(str(Path(argument).expanduser().absolute())),
        split=given.split(),
        shard_in_id=bool(given.text("id")),
    )


def _shards(pattern: str) -> list[Path]:
    files: list[Path] = []
    for name in _expand(pattern):
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        files += [Path(file) for file in found]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        more = f" ({len(missing):,} of {len(files):,} shards)" if len(missing) > 1 else ""
        raise SourceError(f"{missing[0] if missing else pattern} does not exist{more}")
    return files


def _expand(pattern: str) -> list[str]:
    """All strings a pattern with braces stands for; ranges keep their leading zeros."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    if match[3] is not None:
        middle = match[3].split(",")
    else:
        middle = [f"{n:0{len(match[1])}}" for n in range(int(match[1]), int(match[2]) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + part + rest for part in middle for rest in _expand(tail)]


@dataclass(frozen=True, slots=True)
class _Member:
    """One file in a shard.

    Attributes:
        stem: its name without the last ending.
        ending: that ending in lower case, with its dot.
        place: offset and length of its bytes.
        is_second: another member of its name came before.
    """

    stem: str
    ending: str
    place: tuple[int, int]
    is_second: bool


@dataclass(slots=True)
class _Sample:
    """The members of one key, and why they cannot be told apart, or empty."""

    pictures: list[_Member] = field(default_factory=list)
    texts: list[_Member] = field(default_factory=list)
    fault: str = ""

    def own(self, picture: _Member) -> list[_Member]:
        """The texts that go with one of its pictures: not those that another is called like."""
        others = {other.stem for other in self.pictures} - {picture.stem}
        return [text for text in self.texts if text.stem not in others]

    def name_of(self, picture: _Member, key: str) -> str:
        """The id of one of its pictures: as short as tells it from the others."""
        if len(self.pictures) == 1:
            return key
        alike = sum(other.stem == picture.stem for other in self.pictures)
        return picture.stem if alike == 1 else picture.stem + picture.ending


class WebDatasetSource:
    """Items in tar shards, one shard after the other.

    Attributes:
        notes: lines for people about what was left out, whole when all items were read.
        is_partial: options leave items out that the name covers; their absence means nothing.
    """

    def __init__(self, *, name: str, shards: list[Path], split: str, shard_in_id: bool) -> None:
        self.name = name
        self.notes: list[str] = []
        self.is_partial = bool(split)
        self._shards = shards
        self._split = split
        self._shard_in_id = shard_in_id

    def count(self) -> None:
        """Not known before all headers were read."""

    def items(self) -> Iterator[Item]:
        """Every sample that has a picture, in the shards' order.

        Raises:
            SourceError: a shard is damaged or cut off, or a key comes back.
        """
        return passed(self._items(), self, self._split)

    def _items(self) -> Iterator[Item]:
        self.notes.clear()
        left = _Left()
        seen: dict[str, Path] = {}
        for shard in self._shards:
            mtime_ns = size_and_time(str(shard))[1]
            for picture, record, damaged in _shard_records(shard, left):
                item_id = f"{shard.stem}/{record.image}" if self._shard_in_id else record.image
                if item_id in seen:
                    raise _comes_back(item_id, shard, seen[item_id], self._shard_in_id)
                seen[item_id] = shard
                if damaged:
                    left.damaged.append(item_id)
                offset, size = picture.place
                yield replace(
                    merge([record], item_id=item_id),
                    uri=f"webdataset:{shard}#{offset},{size}",
                    mtime_ns=mtime_ns,
                )
        self.notes += left.notes()


@dataclass(slots=True)
class _Left:
    """What was in the shards and gave no item."""

    others: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Lines for people."""
        lines = []
        for names, what in (
            (self.samples, "samples have no picture"),
            (self.damaged, "samples have a .json that is none; taken without it"),
        ):
            more = ", …" if len(names) > _SHOWN else ""
            if names:
                lines.append(f"{len(names):,} {what}: {', '.join(names[:_SHOWN])}{more}")
        if self.others:
            kinds = ", ".join(f"{name} {count:,}" for name, count in self.others.most_common(8))
            lines.append(f"{self.others.total():,} members are neither pictures nor texts: {kinds}")
        return lines


def _comes_back(item_id: str, shard: Path, before: Path, shard_in_id: bool) -> SourceError:
    if shard == before:
        hint = "write the shard again with a name of its own for each member"
    elif shard_in_id:
        hint = "two shards have one name: rename one"
    else:
        hint = "make ids of shard and key with `?id=shard`"
    return SourceError(f"key {item_id} of {shard} was in {before} already", hint=hint)


def _shard_records(shard: Path, left: _Left) -> Iterator[tuple[_Member, Record, bool]]:
    """Each picture of a shard, what is said of it, and whether a JSON of it is damaged."""
    try:
        with open_regular(shard) as file:
            for key, sample in _samples(file, shard, left).items():
                if not sample.pictures:
                    left.samples.append(key)
                for picture in sample.pictures:
                    name = sample.name_of(picture, key)
                    record, damaged = _record(file, name, sample.own(picture))
                    yield picture, replace(record, fault=sample.fault or record.fault), damaged
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(
            f"{shard} is damaged, cut off, or no plain tar: {one_line(error)}"
        ) from error


def _samples(file: BinaryIO, shard: Path, left: _Left) -> dict[str, _Sample]:
    """The samples of a shard by their key; the data of its members are passed over."""
    size_bytes = os.fstat(file.fileno()).st_size
    samples: dict[str, _Sample] = {}
    places: dict[str, tuple[int, int]] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            tar.members = []  # type: ignore[attr-defined] # it would keep every header
            member = _member(info, places, size_bytes, left)
            if member is None:
                continue
            folder, slash, name = member.stem.rpartition("/")
            sample = samples.setdefault(folder + slash + name.partition(".")[0], _Sample())
            if member.is_second:
                sample.fault = f"{shard} has two members called {member.stem}{member.ending}"
            elif member.ending in picture_suffixes():
                sample.pictures.append(member)
            else:
                sample.texts.append(member)
        end = tar.offset
    file.seek(end)
    # `tarfile` takes a damaged header for the end: two empty blocks are there at a true one
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise tarfile.ReadError(f"no end-of-archive mark at byte {end:,}")
    return samples


def _member(
    info: tarfile.TarInfo, places: dict[str, tuple[int, int]], size_bytes: int, left: _Left
) -> _Member | None:
    """A picture or text of a shard; None for folders, and for others, which are counted."""
    if info.isdir():
        return None
    name = clean_text(info.name).removeprefix("./")
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.rpartition(".")
    ending = f".{ending.lower()}" if dot else ""
    if file.startswith("._") or name.startswith("__MACOSX/"):
        left.others["macOS's ._ files"] += 1
        return None
    place = places.get(info.linkname) if info.islnk() else (info.offset_data, info.size)
    if place is None or not (info.isfile() or info.islnk()):
        left.others["links and devices"] += 1
        return None
    if sum(place) > size_bytes:  # `tarfile` would not look
        raise tarfile.ReadError(f"{name} ends at byte {sum(place):,}, the file at {size_bytes:,}")
    is_second = name in places
    places[name] = place
    if ending not in picture_suffixes() and ending not in (*_TEXTS, ".json"):
        left.others[ending or "(none)"] += 1
        return None
    return _Member(folder + slash + stem, ending, place, is_second)


def _record(file: BinaryIO, name: str, texts: list[_Member]) -> tuple[Record, bool]:
    """What is said of a picture, and whether a JSON of it could not be read."""
    captions: list[str] = []
    meta: dict[str, Json] = {}
    told: tuple[str, ...] = ()
    fault, damaged = "", False
    for text in texts:
        offset, size = text.place
        if size > MAX_TEXT:
            fault = f"{text.stem}{text.ending} has {size:,} bytes; at most {MAX_TEXT:,} are read"
            continue
        file.seek(offset)
        content = file.read(size)
        if text.ending in _TEXTS:
            captions += [line.strip() for line in split_lines(decode_text(content)) if line.strip()]
            continue
        try:
            value = parse_json(content, text.stem)
        except SourceError:
            value = None
        damaged = damaged or not isinstance(value, dict)
        meta |= value if isinstance(value, dict) else {}
    named = next((key for key in CAPTION_KEYS if meta.get(key)), "")
    if named:
        told, wrong = captions_of(meta[named])
        fault = fault or ("" if captions else wrong)
        if not captions or told == tuple(captions):
            del meta[named]
    split = split_name(str(meta.pop("split", "") or ""))
    record = Record(
        image=name,
        captions=tuple(captions) or told,
        split=split,
        meta=meta,
        fault=fault,
    )
    return record, damaged


def read_bytes(uri: str) -> bytes:
    """One picture out of its shard.

    Args:
        uri: `webdataset:FILE#OFFSET,SIZE`.

    Raises:
        SourceError: the shard is gone or shorter.
    """
    path, _, place = uri.removeprefix("webdataset:").rpartition("#")
    offset, _, size = place.partition(",")
    if size.isdecimal() and int(size) > MAX_BYTES:
        raise SourceError(f"cannot read {uri}: at most {MAX_BYTES:,} bytes are read")
    try:
        with open_regular(path) as file:
            file.seek(int(offset))
            data = file.read(int(size))
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {uri}: {one_line(error)}") from error
    if len(data) != int(size):
        raise SourceError(f"cannot read {uri}: the shard ends after {len(data):,} bytes of it")
    return data
