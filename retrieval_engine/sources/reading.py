"""Opens and reads the files of users: regular files alone, a bounded part of them at a time.

A pipe or a device under a picture's name would hold a run up for ever; a line or a compressed file
of gigabytes would take all memory.
"""

import codecs
import errno
import gzip
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, TextIO

from retrieval_engine.errors import SourceError
from retrieval_engine.records import Json
from retrieval_engine.urls import Place, Url

MAX_BYTES = 1 << 30
"""Largest file, table cell or member of an archive that is read as one picture."""
MAX_TEXT = 16 << 20
"""Longest line, sidecar or JSON value, in characters or bytes."""

UNREADABLE = (OSError, EOFError, zlib.error)
"""What reading a file raises that cannot be read, gzipped or not."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PEEKED = 4096
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


def one_line(error: BaseException | str) -> str:
    """What an error says, on one line of a bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def open_regular(path: Place | str) -> BinaryIO:
    """A file for reading that is surely a regular one; opening never waits.

    Raises:
        OSError: it cannot be opened, or is a folder, pipe or device.
        UrlFailure: what an address leads to cannot be opened.
    """
    if isinstance(path, Url):
        return path.open()
    wait_not = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | wait_not)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_whole(path: Place | str, most: int = MAX_BYTES) -> bytes:
    """All bytes of a regular file; a text is a path of this machine, whatever it looks like.

    Raises:
        SourceError: it cannot be read or holds more than `most` bytes.
    """
    try:
        if isinstance(path, Url):
            data = path.read(most + 1)
        else:
            with open_regular(path) as file:
                data = file.read(most + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SourceError(f"cannot read {path}: {reason}") from error
    if len(data) > most:
        raise SourceError(f"cannot read {path}: it has more than {most:,} bytes")
    return data


@contextmanager
def open_text(path: Place, newline: str | None = None) -> Iterator[TextIO]:
    """A text file, gzipped or not, in UTF-8, UTF-16 or UTF-32; other bytes become U+FFFD."""
    with open_regular(path) as raw:
        data: IO[bytes] | gzip.GzipFile = raw
        if path.suffix.lower() == ".gz":
            data = gzip.GzipFile(fileobj=raw)
        encoding = _encoding(data.read(_PEEKED))
        data.seek(0)
        with io.TextIOWrapper(data, encoding, errors="replace", newline=newline) as text:
            yield text


def decode_text(data: bytes) -> str:
    """The text in these bytes, by the same rules as `open_text`."""
    return data.decode(_encoding(data[:_PEEKED]), "replace")


def lines(stream: TextIO, path: Place) -> Iterator[str]:
    """The lines of an open text, with their ends; only CR, LF or both end a line.

    Raises:
        SourceError: a line is too long to be one.
    """
    number = 0
    while line := stream.readline(MAX_TEXT + 1):
        number += 1
        if len(line) > MAX_TEXT:
            raise SourceError(f"{path}:{number} has more than {MAX_TEXT:,} characters in one line")
        yield line


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends; `str.splitlines` would cut at U+2028 and U+0085."""
    return _LINE_BREAK.split(text)


def parse_json(text: str | bytes, where: str) -> Json:
    """A JSON value.

    Raises:
        SourceError: it is none.
    """
    try:
        value: Json = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{where} is no JSON: {one_line(error)}") from error
    except RecursionError as error:
        raise SourceError(f"{where} is nested too deeply") from error
    return value


def _encoding(start: bytes) -> str:
    """The encoding of a text by its first bytes."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    # without a mark, UTF-16 of western letters has a zero in nearly every second byte
    even, odd = start[0::2], start[1::2]
    if len(odd) > 3 and odd.count(0) > len(odd) // 2 and not even.count(0):
        return "utf-16-le"
    if len(odd) > 3 and even.count(0) > len(even) // 2 and not odd.count(0):
        return "utf-16-be"
    return "utf-8"
