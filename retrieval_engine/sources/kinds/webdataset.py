"""`webdataset:shards-{000..009}.tar`: plain tar shards with `key.jpg`, `key.txt`, `key.json`.

    webdataset:cc3m/{00000..00331}.tar        all must be there
    webdataset:cc3m/*.tar?id=shard            ids `shard/key`, where keys come back in each shard

The lines of `.txt` (or `.caption`) are the captions; without one, `caption` or `captions` of the
`.json`, whose other keys are metadata and whose `split` is the item's split. Headers alone are read
to list the items, and a picture is read from its place in the shard: `webdataset:FILE#OFFSET,SIZE`.
"""

import glob
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.records import Item, Json
from retrieval_engine.sources.annotated import merge
from retrieval_engine.sources.caption_files import CAPTION_KEYS, Record, captions_of
from retrieval_engine.sources.source_name import Options, of_split, split_name

_IMAGES = frozenset(
    ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "heic")
)
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
        SourceError: a shard is not there or is no plain tar.
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


@dataclass(slots=True)
class _Sample:
    """The members of one key."""

    shard: Path
    key: str
    place: tuple[int, int] | None = None
    text: bytes | None = None
    meta: bytes | None = None


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
        return of_split(self._items(), self._split, self.name)

    def _items(self) -> Iterator[Item]:
        self.notes.clear()
        seen: dict[str, Path] = {}
        no_picture: list[str] = []
        damaged: list[str] = []
        for shard in self._shards:
            mtime_ns = shard.stat().st_mtime_ns
            for sample in _samples(shard):
                item_id = f"{shard.stem}/{sample.key}" if self._shard_in_id else sample.key
                if item_id in seen:
                    raise SourceError(
                        f"key {item_id} of {shard} was in {seen[item_id]} already",
                        hint="make ids of shard and key with ?id=shard",
                    )
                seen[item_id] = shard
                if sample.place is None:
                    no_picture.append(item_id)
                    continue
                record, is_whole = _record(sample, item_id)
                if not is_whole:
                    damaged.append(item_id)
                uri = f"webdataset:{shard}#{sample.place[0]},{sample.place[1]}"
                yield replace(merge([record]), uri=uri, mtime_ns=mtime_ns)
        self.notes += _note(no_picture, "samples have no picture")
        self.notes += _note(damaged, "samples have a .json that is none; taken without it")


def _note(names: list[str], what: str) -> list[str]:
    more = ", …" if len(names) > _SHOWN else ""
    return [f"{len(names):,} {what}: {', '.join(names[:_SHOWN])}{more}"] if names else []


def _samples(shard: Path) -> Iterator[_Sample]:
    """The samples of a shard; the data of its pictures is passed over."""
    try:
        size_bytes = shard.stat().st_size
        with tarfile.open(shard, "r:") as tar:
            members = (_within(member, size_bytes) for member in tar if member.isfile())
            for key, group in groupby(members, key=lambda member: _key(member.name)[0]):
                sample = _Sample(shard=shard, key=key)
                for member in group:
                    _add(sample, tar, member)
                yield sample
            _check_end(shard, tar.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(f"{shard} is damaged, cut off, or no plain tar: {error}") from error


def _within(member: tarfile.TarInfo, size_bytes: int) -> tarfile.TarInfo:
    """The member, if the shard holds all of it; `tarfile` would not look."""
    end = member.offset_data + member.size
    if end > size_bytes:
        raise tarfile.ReadError(f"{member.name} ends at byte {end:,}, the file at {size_bytes:,}")
    return member


def _key(name: str) -> tuple[str, str]:
    """Key and ending of a member: the key ends at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return folder + slash + stem, ending.lower()


def _add(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    ending = _key(member.name)[1]
    if ending.rpartition(".")[2] in _IMAGES and sample.place is None:
        sample.place = (member.offset_data, member.size)
    elif ending in {"txt", "caption", "json"}:
        stream = tar.extractfile(member)
        content = stream.read() if stream else b""
        if ending == "json":
            sample.meta = content
        else:
            sample.text = content


def _check_end(shard: Path, offset: int) -> None:
    """Check for the two empty blocks; `tarfile` takes a damaged header for the end."""
    with shard.open("rb") as file:
        file.seek(offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"no end-of-archive mark at byte {offset:,}")


def _record(sample: _Sample, item_id: str) -> tuple[Record, bool]:
    """What a sample says, and whether its JSON could be read."""
    meta: dict[str, Json] = {}
    is_whole = True
    if sample.meta is not None:
        try:
            loaded = json.loads(sample.meta)
        except ValueError:
            loaded = None
        is_whole = isinstance(loaded, dict)
        meta = loaded if isinstance(loaded, dict) else {}
    named = next((key for key in CAPTION_KEYS if meta.get(key)), "")
    told = captions_of(meta.pop(named, None), f"{sample.shard}: {sample.key}.json")
    lines = (sample.text or b"").decode("utf-8-sig", "replace").splitlines()
    captions = tuple(line.strip() for line in lines if line.strip()) or told
    split = split_name(str(meta.pop("split", "") or ""))
    return Record(image=item_id, captions=captions, split=split, meta=meta), is_whole


def read_bytes(uri: str) -> bytes:
    """One picture out of its shard.

    Args:
        uri: `webdataset:FILE#OFFSET,SIZE`.

    Raises:
        SourceError: the shard is gone or shorter.
    """
    path, _, place = uri.removeprefix("webdataset:").rpartition("#")
    offset, _, size = place.partition(",")
    try:
        with open(path, "rb") as file:
            file.seek(int(offset))
            data = file.read(int(size))
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {uri}: {error}") from error
    if len(data) != int(size):
        raise SourceError(f"cannot read {uri}: the shard ends after {len(data):,} bytes of it")
    return data
