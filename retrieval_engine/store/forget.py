"""Taking a source out of a store."""

from pathlib import Path

from retrieval_engine.errors import UsageError
from retrieval_engine.store.items import live_items, sources
from retrieval_engine.store.ledger import read_failures
from retrieval_engine.store.manifest import read_header, read_manifest
from retrieval_engine.store.mirror import local_store
from retrieval_engine.store.writer import StoreWriter


def forget_source(path: str | Path, source: str) -> int:
    """Take all items of a source out of a store, and its failures out of the ledger.

    Features stay until `compact_store`: encoding the same pictures again costs nothing before it.

    Args:
        path: directory of the store.
        source: its name as the store has it, e.g. `folder:/data/pets`; a folder's path will do,
            also when it is no longer there.

    Returns:
        Number of items taken out.

    Raises:
        UsageError: the store holds nothing of it; the message lists what it holds.
        StoreNotFound: there is no store.
        StoreError: a writer is at work.
    """
    path = local_store(path)
    read_header(path)
    name = _known_as(path, source)
    with StoreWriter.reopen(path) as writer:
        return writer.finish(name, seen=())


def _known_as(path: Path, source: str) -> str:
    known = sources(live_items(path, read_manifest(path), ["source"]))
    names = {*known, *(failure.source for failure in read_failures(path))}
    kind, colon, place = source.partition(":")
    if not colon or "/" in kind:
        kind, place = "folder", source
    given = Path(place.partition("?")[0]).expanduser()
    for name in (
        source,
        f"folder:{source.rstrip('/')}",
        f"{kind}:{given.absolute()}",
        f"{kind}:{given.resolve()}",
    ):
        if name in names:
            return name
    listed = ", ".join(f"{name} ({count:,})" for name, count in known.items())
    raise UsageError(
        f"{path} holds nothing of {source!r}; it holds: {listed or 'no items'}",
        hint="name one of these",
    )
