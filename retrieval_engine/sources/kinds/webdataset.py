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

import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.records import Item, Json
from retrieval_engine.sources.annotated import merge
from retrieval_engine.sources.annotation import CAPTION_KEYS, Record, captions_of
from retrieval_engine.sources.cleaning import CleanedSource, clean_text
from retrieval_engine.sources.decode import picture_suffixes
from retrieval_engine.sources.image_folder import state_of
from retrieval_engine.sources.reading import (
    MAX_BYTES,
    MAX_TEXT,
    decode_text,
    one_line,
    open_regular,
    parse_json,
    split_lines,
)
from retrieval_engine.sources.source_name import Options, existing_files, place_at, split_name
from retrieval_engine.sources.spool import local_copy, read_piece
from retrieval_engine.urls import Place, is_url

_TEXTS = (".txt", ".caption")
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
    pattern = argument if is_url(argument) else str(Path(argument).expanduser().absolute())
    return WebDatasetSource(
        name=f"webdataset:{pattern}",
        shards=existing_files(pattern),
        split=given.split(),
        shard_in_id=bool(given.text("id")),
    )


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


class WebDatasetSource(CleanedSource):
    """Items in tar shards, one shard after the other."""

    def __init__(self, *, name: str, shards: list[Place], split: str, shard_in_id: bool) -> None:
        super().__init__(name, split)
        self._shards = shards
        self._shard_in_id = shard_in_id

    def count(self) -> None:
        """Not known before all headers were read."""

    def _items(self) -> Iterator[Item]:
        self.notes.clear()
        left = _Left()
        seen: dict[str, Place] = {}
        for shard in self._shards:
            state = state_of(shard)
            prefix = f"{shard.stem}/" if self._shard_in_id else ""
            for (offset, size), record in _shard_records(shard, prefix, left):
                if before := seen.get(record.image):
                    raise _comes_back(record.image, shard, before, self._shard_in_id)
                seen[record.image] = shard
                uri = f"webdataset:{shard}#{offset},{size}"
                item = replace(merge([record]), uri=uri)
                yield replace(item, mtime_ns=state.mtime_ns, version=state.version)
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
        told = {"have no picture": self.samples}
        told["have a .json that is none; taken without it"] = self.damaged
        for what, names in told.items():
            more = ", …" if len(names) > _SHOWN else ""
            if names:
                lines.append(f"{len(names):,} samples {what}: {', '.join(names[:_SHOWN])}{more}")
        if self.others:
            kinds = ", ".join(f"{name} {count:,}" for name, count in self.others.most_common(8))
            lines.append(f"{self.others.total():,} members are neither pictures nor texts: {kinds}")
        return lines


def _comes_back(item_id: str, shard: Place, before: Place, shard_in_id: bool) -> SourceError:
    hint = "write the shard again with a name of its own for each member"
    if shard != before and shard_in_id:
        hint = "two shards have one name: rename one"
    elif shard != before:
        hint = "make ids of shard and key with `?id=shard`"
    return SourceError(f"key {item_id} of {shard} was in {before} already", hint=hint)


def _shard_records(
    shard: Place, prefix: str, left: _Left
) -> Iterator[tuple[tuple[int, int], Record]]:
    """Place of each picture of a shard, and what is said of it; ids begin with the prefix."""
    try:
        with open_regular(local_copy(shard)) as file:
            for key, sample in _samples(file, shard, left).items():
                if not sample.pictures:
                    left.samples.append(key)
                for picture in sample.pictures:
                    name = prefix + sample.name_of(picture, key)
                    yield (
                        picture.place,
                        _record(file, name, sample.own(picture), sample.fault, left),
                    )
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(
            f"{shard} is damaged, cut off, or no plain tar: {one_line(error)}"
        ) from error


def _samples(file: BinaryIO, shard: Place, left: _Left) -> dict[str, _Sample]:
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


def _record(file: BinaryIO, name: str, texts: list[_Member], fault: str, left: _Left) -> Record:
    """What is said of a picture; `left` is told where a JSON of it could not be read."""
    captions: list[str] = []
    meta: dict[str, Json] = {}
    told: tuple[str, ...] = ()
    damaged = False
    for text in texts:
        offset, size = text.place
        if size > MAX_TEXT:
            large = f"{text.stem}{text.ending} has {size:,} bytes; at most {MAX_TEXT:,} are read"
            fault = fault or large
            continue
        file.seek(offset)
        content = file.read(size)
        if text.ending in _TEXTS:
            captions += [line.strip() for line in split_lines(decode_text(content)) if line.strip()]
            continue
        value: Json = None
        with suppress(SourceError):
            value = parse_json(content, text.stem)
        if isinstance(value, dict):
            meta |= value
        else:
            damaged = True
    if damaged:
        left.damaged.append(name)
    if named := next((key for key in CAPTION_KEYS if meta.get(key)), ""):
        told, wrong = captions_of(meta[named])
        fault = fault or ("" if captions else wrong)
        if not captions or told == tuple(captions):
            del meta[named]
    split = split_name(str(meta.pop("split", "") or ""))
    return Record(image=name, captions=tuple(captions) or told, split=split, meta=meta, fault=fault)


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
        data = read_piece(place_at(path), int(offset), int(size))
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {uri}: {one_line(error)}") from error
    if len(data) != int(size):
        raise SourceError(f"cannot read {uri}: the shard ends after {len(data):,} bytes of it")
    return data
