"""JSON files of any length, one element at a time.

Annotation files are one large list, or an object with one or two large lists in it. `json.load`
holds the whole of it as Python objects: 1.1 GB for dataset_coco.json of 144 MB.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from retrieval_engine.errors import SourceError
from retrieval_engine.records import Json
from retrieval_engine.sources.reading import MAX_TEXT, UNREADABLE, one_line, open_text
from retrieval_engine.urls import Place

_CHUNK = 1 << 20
_BLANK = " \t\r\n"
_AFTER_VALUE = frozenset(",:]}" + _BLANK)


def is_list(path: Place) -> bool:
    """Whether the outermost value of the file is a list.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        with open_text(path) as stream:
            return stream.read(4096).lstrip(_BLANK).startswith("[")
    except UNREADABLE as error:
        raise SourceError(f"cannot read {path}: {one_line(error)}") from error


def elements(path: Place, key: str = "") -> Iterator[Json]:
    """The elements of a list in a JSON file, in order.

    Args:
        path: the file; gzipped when it ends in `.gz`.
        key: the list is the value of this key of the outermost object; empty means that the
            outermost value itself is the list.

    Raises:
        SourceError: the file cannot be read, is no JSON, or has no such list.
    """
    with _scanner(path) as scanner:
        yield from scanner.elements() if not key else scanner.elements_of(key)


def pairs(path: Place) -> Iterator[tuple[str, Json]]:
    """The keys and values of the outermost object of a JSON file, in order.

    Raises:
        SourceError: the file cannot be read, is no JSON, or no object.
    """
    with _scanner(path) as scanner:
        yield from scanner.pairs()


@contextmanager
def _scanner(path: Place) -> Iterator["_Scanner"]:
    try:
        with open_text(path) as stream:
            yield _Scanner(stream)
    except UNREADABLE as error:
        raise SourceError(f"cannot read {path}: {one_line(error)}") from error
    except ValueError as error:
        raise SourceError(f"{path}: {one_line(error)}") from error


class _Scanner:
    """Reads values off a stream of text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._read = 0
        self._ended = False

    def elements(self) -> Iterator[Json]:
        """Elements of the list that starts here."""
        self._expect("[")
        if self._next() == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            mark = self._next()
            self._at += 1
            if mark == "]":
                return
            if mark != ",":
                raise ValueError(f"no JSON: expected , or ] at character {self._place():,}")

    def elements_of(self, key: str) -> Iterator[Json]:
        """Elements of the list under this key of the object that starts here."""
        self._expect("{")
        seen = []
        while self._next() != "}":
            name = self._value()
            self._expect(":")
            seen.append(str(name))
            if self._next() != "[":
                self._value()
            elif name == key:
                yield from self.elements()
                return
            else:
                for _ in self.elements():
                    pass
            if self._next() == ",":
                self._at += 1
        raise ValueError(f"no list {key!r}; found the keys {', '.join(seen) or 'none'}")

    def pairs(self) -> Iterator[tuple[str, Json]]:
        """Keys and values of the object that starts here."""
        self._expect("{")
        while self._next() != "}":
            name = self._value()
            self._expect(":")
            yield str(name), self._value()
            if self._next() == ",":
                self._at += 1

    def _value(self) -> Json:
        """The whole value that starts here."""
        self._next()
        while True:
            try:
                value: Json
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise ValueError(f"nested too deeply at character {self._place():,}") from error
            except ValueError as error:
                if len(self._text) - self._at > MAX_TEXT:
                    raise ValueError(
                        f"the value at character {self._place():,} has more than {MAX_TEXT:,}"
                    ) from error
                if not self._fill():
                    place = self._place()
                    raise ValueError(
                        f"no JSON: damaged or cut off at character {place:,}"
                    ) from error
                continue
            # `12` may be the start of `123` or of `12.5`: only what ends a value tells
            if self._text[end : end + 1] in _AFTER_VALUE or not self._fill():
                self._at = end
                return value

    def _next(self) -> str:
        """The next character that is no blank."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                raise ValueError(f"no JSON: cut off at character {self._place():,}")

    def _expect(self, mark: str) -> None:
        if self._next() != mark:
            raise ValueError(f"no JSON: expected {mark} at character {self._place():,}")
        self._at += 1

    def _fill(self) -> bool:
        """Append a chunk of text and drop what was read; False at the end of the file."""
        chunk = "" if self._ended else self._stream.read(max(_CHUNK, len(self._text) - self._at))
        if not chunk:
            self._ended = True
            return False
        self._read += self._at
        self._text = self._text[self._at :] + chunk
        self._at = 0
        return True

    def _place(self) -> int:
        return self._read + self._at
