"""Items in: where pictures and captions come from.

A source is named `kind:argument[?key=value&…]`; the kind is a file in `kinds/` with

    def open_source(argument: str, options: Mapping[str, str]) -> Source
    def read_bytes(uri: str) -> bytes        # only where a uri is not a plain file path
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from retrieval_engine import plugins
from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.records import Item

KINDS = "retrieval_engine.sources.kinds"


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
        spec: `kind:argument[?key=value&…]`, e.g. `scenes:1000?seed=7`. A path of an existing
            directory alone means `folder:PATH`.

    Raises:
        UsageError: no such kind, or a malformed or unknown option.
        SourceError: the data is not there.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in plugins.names(KINDS):
        if Path(spec).is_dir():
            kind, rest = "folder", spec
        elif not colon:
            known = ", ".join(plugins.names(KINDS))
            raise UsageError(
                f"{spec!r} is neither a directory nor a source",
                hint=f"name a source as kind:argument; kinds: {known}",
            )
    argument, _, query = rest.partition("?")
    # not `parse_qsl`: it would read the `+` of a path as a blank
    pairs = [part.partition("=") for part in query.split("&") if part]
    module = plugins.load(KINDS, kind, noun="source")
    options = {key: unquote(value) for key, _, value in pairs}
    source: Source = module.open_source(argument, options)
    return source


def read_bytes(uri: str) -> bytes:
    """The bytes of an item's image.

    Args:
        uri: `Item.uri`: a file path, or `kind:…` of a kind that has its own way of reading.

    Raises:
        SourceError: the bytes cannot be had; the message is the reason.
    """
    kind, colon, _ = uri.partition(":")
    if colon and kind in plugins.names(KINDS):
        module = plugins.load(KINDS, kind, noun="source")
        if not hasattr(module, "read_bytes"):
            raise SourceError(f"{uri} is a source, not a picture", hint="name one picture in it")
        data: bytes = module.read_bytes(uri)
        return data
    try:
        return Path(uri).read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {uri}: {error.strerror}") from error
