"""Items in: where pictures and captions come from.

A source is named `kind:argument[?key=value&…]`; the kind is a file in `kinds/` with

    def open_source(argument: str, options: Mapping[str, str]) -> Source
    def read_bytes(uri: str) -> bytes        # only where a uri is not a plain file path
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.plugins import Plugins
from retrieval_engine.records import Item
from retrieval_engine.sources.reading import read_whole
from retrieval_engine.urls import READERS, Url, is_url

KINDS = Plugins(package="retrieval_engine.sources.kinds", noun="source", group="vlre.sources")
_OPTIONS = re.compile(r"(?:[A-Za-z][\w-]*(?:=|&|$))|$")
_FILE_KINDS = ((".parquet", "parquet"), (".tar", "webdataset"))


class Source(Protocol):
    """A stream of items.

    Attributes:
        name: what the items' ids are unique within, e.g. `folder:/data/pets`. Two runs over the
            same data give the same name, whatever split or number of items was asked for.
        notes: lines for people about what was found and left out; whole when all items were read.
        is_partial: options leave items out that the name covers, so that an item's absence means
            nothing.
    """

    notes: list[str]
    is_partial: bool

    @property
    def name(self) -> str:
        """See the class."""

    def items(self) -> Iterator[Item]:
        """Every item, in an order that is the same in each run; not all held in memory."""

    def count(self) -> int | None:
        """Number of items, or None when only reading would tell."""


class EmptySource:
    """A source that had items once and has none now.

    Args:
        name: what it was called.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.notes = [f"{name} holds nothing any more: its items are taken out of the store"]
        self.is_partial = False

    def items(self) -> Iterator[Item]:
        """None."""
        return iter(())

    def count(self) -> int | None:
        """None at all."""
        return 0


def open_source(spec: str) -> Source:
    """The source with this name.

    Args:
        spec: `kind:argument[?key=value&…]`, e.g. `scenes:1000?seed=7`. The path of an existing
            directory alone means `folder:PATH`, also where it looks like another source's name; so
            does an address, `s3://bucket/photos`. Addresses in it count as named by the user.

    Raises:
        UsageError: no such kind, or a malformed or unknown option.
        SourceError: the data is not there.

    Examples:
        >>> item = next(iter(open_source("scenes:10?seed=7").items()))
        >>> item.id, len(item.captions)
        ('scene-7-000000', 5)
    """
    argument, query = _argument(spec)
    kind, colon, rest = spec.partition(":")
    if Path(argument).expanduser().is_dir() or is_url(spec):
        kind = "folder"
    elif colon and kind in KINDS.names():
        argument, query = _argument(rest)
    elif Path(argument).expanduser().is_file():
        raise UsageError(
            f"{argument} is a file", hint=f"name it as a source: {_kind_of(argument)}:{spec}"
        )
    elif not colon:
        known = ", ".join(KINDS.names())
        raise UsageError(
            f"{spec!r} is neither a directory nor a source",
            hint=f"name a source as kind:argument; kinds: {known}",
        )
    # not `parse_qsl`: it would read the `+` of a path as a blank
    pairs = [part.partition("=") for part in query.split("&") if part]
    module = KINDS.load(kind)
    options = {key: unquote(value) for key, _, value in pairs}
    source: Source = module.open_source(argument, options)
    return source


def names_source(text: str) -> bool:
    """Whether words name a folder or a source, rather than one image."""
    kind, colon, _ = text.partition(":")
    if os.path.isdir(os.path.expanduser(text)):
        return True
    if is_url(text) and kind not in {
        "http",
        "https",
        "file",
    }:  # these name one image, as a browser does
        return "#" not in text
    return bool(colon) and kind in KINDS.names() and "#" not in text


def readers_for(name: str) -> int:
    """How many items of a source to read at once; 0 where a reader for each core is right.

    Args:
        name: of the source. A file behind an address is mostly waited for.
    """
    return READERS if is_url(name.partition(":")[2]) else 0


def _argument(rest: str) -> tuple[str, str]:
    """The argument and the options of a source's name; the argument may hold `?` itself.

    The longest part before a `?` that exists is the argument, also when it is percent-coded; else
    options begin at the first `?` after which they can, so that `shard-?.tar` is a pattern.
    """
    marks = [at for at, mark in enumerate(rest) if mark == "?"]
    for at in [len(rest), *reversed(marks)]:
        for path in dict.fromkeys((rest[:at], unquote(rest[:at]))):
            if path and os.path.lexists(os.path.expanduser(path)):
                return path, rest[at + 1 :]
    for at in marks:
        if _OPTIONS.match(rest[at + 1 :]):
            return rest[:at], rest[at + 1 :]
    return rest, ""


def _kind_of(path: str) -> str:
    name = path.lower().removesuffix(".gz")
    return next((kind for ending, kind in _FILE_KINDS if name.endswith(ending)), "captions")


def read_item(item: Item) -> bytes:
    """The bytes of an item's image.

    Raises:
        SourceError: the item was found to be unusable, or its bytes cannot be had.
    """
    if item.fault:
        raise SourceError(item.fault)
    return read_bytes(item.uri)


def read_bytes(uri: str) -> bytes:
    """The bytes of an item's image.

    Args:
        uri: `Item.uri`: a file path, or `kind:…` of a kind that has its own way of reading; an
            address only where a person named one above it, see `urls`.

    Raises:
        SourceError: the bytes cannot be had; the message is the reason.
    """
    kind, colon, _ = uri.partition(":")
    if colon and kind in KINDS.names():
        module = KINDS.load(kind)
        if not hasattr(module, "read_bytes"):
            raise SourceError(f"{uri} names a source, not a picture", hint="name one file of it")
        data: bytes = module.read_bytes(uri)
        return data
    return read_whole(Url(uri) if is_url(uri) else uri)
