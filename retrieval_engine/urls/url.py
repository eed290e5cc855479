"""An address as something to read, list and look at, as `Path` is for a file of this machine."""

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote

from retrieval_engine.errors import UrlFailure, UrlMissing
from retrieval_engine.urls.named import fixed_part
from retrieval_engine.urls.systems import HTTP, scheme_of, system_of, telling

_BLOCK = 4 << 20
_MTIMES = ("LastModified", "mtime", "last_modified", "Last-Modified", "modified", "updated")
_VERSIONS = ("ETag", "etag", "Content-MD5", "content_md5", "md5Hash", "generation")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What tells whether a file has changed without reading it.

    Attributes:
        size_bytes: its length, or -1.
        mtime_ns: its time, or -1.
        version: its ETag or the like. Of a file of which neither is known it never comes twice.
    """

    size_bytes: int
    mtime_ns: int
    version: str

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "State":
        """What a file system says of a file."""
        time_of = next((info[name] for name in _MTIMES if info.get(name)), info.get("created"))
        mtime_ns = _nanoseconds(time_of)
        version = str(next((info[name] for name in _VERSIONS if info.get(name)), ""))
        if mtime_ns < 0 and not version:
            version = f"seen {time.time_ns()}"
        size = info.get("size")
        return cls(
            size_bytes=-1 if size is None else int(size),
            mtime_ns=mtime_ns,
            version=version.strip('"'),
        )


def _nanoseconds(value: object) -> int:
    if isinstance(value, str):
        try:
            from email.utils import parsedate_to_datetime  # all of `email`: ten milliseconds

            value = parsedate_to_datetime(value)
        except ValueError:
            return -1
    seconds = value.timestamp() if isinstance(value, datetime) else value
    return int(seconds * 1e9) if isinstance(seconds, int | float) else -1


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder in a listing, with the methods of `os.DirEntry` that a walk needs.

    Attributes:
        name: its own, as people read it.
        path: its address.
        info: what its file system says.
    """

    name: str
    path: str
    info: Mapping[str, Any]

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return bool(self.info["type"] == "directory")

    def is_file(self) -> bool:
        """Whether it is a file."""
        return not self.is_dir()

    def is_symlink(self) -> bool:
        """Never: no address is a link."""
        return False

    def state(self) -> State:
        """Its state, asked for where the listing does not tell."""
        known = [self.info.get(name) for name in (*_MTIMES, *_VERSIONS, "created")]
        return State.of(self.info) if any(known) else Url(self.path).state()


@dataclass(frozen=True, slots=True)
class Url:
    """An address with those of a `Path`'s methods that reading needs.

    Attributes:
        url: as it was named, or below that; not percent-coded beyond what its scheme asks for.
    """

    url: str

    def __post_init__(self) -> None:
        """Without the stroke at the end."""
        start = self.url.find("://") + 3
        object.__setattr__(self, "url", self.url[:start] + self.url[start:].rstrip("/"))

    def __str__(self) -> str:
        return self.url

    def __lt__(self, other: "Url") -> bool:
        return self.url < other.url

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.url}/{name.strip('/')}") if name.strip("/") else self

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The ending, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def suffixes(self) -> list[str]:
        """All endings."""
        return PurePosixPath(self.name).suffixes

    @property
    def parent(self) -> "Url":
        """The folder it is in."""
        return Url(self.url.rpartition("/")[0])

    def resolve(self) -> "Url":
        """Itself: an address is absolute."""
        return self

    def is_file(self) -> bool:
        """Whether there is a file.

        Raises:
            UrlFailure: nobody can tell.
        """
        try:
            return bool(self._info()["type"] == "file")
        except UrlMissing:
            return False

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return self.is_file() or self.is_dir()

    def is_dir(self) -> bool:
        """Whether there is a folder with something in it."""
        try:
            return bool(self.entries())
        except UrlMissing:
            return False

    def state(self) -> State:
        """Size, time and version."""
        return State.of(self._info())

    def _info(self) -> Mapping[str, Any]:
        with system_of(self.url) as (system, path):
            info: Mapping[str, Any] = system.info(path)
            return info

    def entries(self) -> list[Entry]:
        """What lies in the folder, in no order."""
        with system_of(self.url) as (system, path):
            # servers redirect `/a` to `/a/`, and redirections are not followed
            here = path + "/" if scheme_of(self.url) in HTTP else path
            found = system.ls(here, detail=True)
        start, entries = path.rstrip("/") + "/", []
        for info in found:
            name = str(info["name"]).removeprefix(start).rstrip("/")
            shown = unquote(name) if scheme_of(self.url) in HTTP else name
            is_ours = str(info["name"]).startswith(start) and name and "/" not in shown
            if is_ours and name[0] not in "?#" and shown not in {".", ".."}:
                entries.append(Entry(shown, f"{self.url}/{name}", info))
        if not entries and any(str(info["name"]).rstrip("/") == path for info in found):
            raise UrlMissing(f"{self.url} is a file, not a folder")
        return entries

    def glob(self) -> "list[Url]":
        """The files that a pattern with `*` stands for, in the order of their names."""
        root = Url(fixed_part(self.url))
        with system_of(root.url) as (system, path):
            start = path.rstrip("/") + "/"
            names = system.glob(start + self.url[len(root.url) + 1 :])
        return sorted(root / name[len(start) :] for name in names if name.startswith(start))

    def open(self) -> BinaryIO:
        """The file for reading, seekable; a few MiB are read ahead."""
        with system_of(self.url) as (system, path):
            file = system.open(path, "rb", block_size=_BLOCK, cache_type="readahead")
        return io.BufferedReader(_Told(file, self.url), 1 << 20)

    def read(self, most: int, *, start: int = 0) -> bytes:
        """Up to `most` bytes of the file, in one request."""
        try:
            with system_of(self.url) as (system, path):
                data: bytes = system.cat_file(path, start=start, end=start + most)
                return data
        except UrlFailure as error:
            if "range" in error.message and self.state().size_bytes == start:
                return b""  # S3 gives no range of nothing
            raise

    def download(self, to: str) -> None:
        """Copy the whole file into one of this machine."""
        with system_of(self.url) as (system, path):
            system.get_file(path, to)


Place = Path | Url
"""A file or folder of this machine, or one behind an address."""


class _Told(io.RawIOBase):
    """A file whose failures are `UrlFailure`, whatever its file system raises."""

    def __init__(self, file: Any, url: str) -> None:
        self._file = file
        self._url = url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with telling(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with telling(self._url):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
