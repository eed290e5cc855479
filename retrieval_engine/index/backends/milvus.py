"""Rows in a collection of a Milvus server or a Milvus Lite file; needs the extra `milvus`.

The index folder holds the catalogue, the collection's name and the key of each item; keys stay when
items come and go, so that an update writes what changed and numbers nothing anew. Rows that the
folder does not know, of an update that goes on or was killed, are never answers.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import FingerprintMismatch, IndexFailure, UsageError
from retrieval_engine.fingerprint import digest
from retrieval_engine.index.backends import How, typed_options
from retrieval_engine.index.build_record import IndexManifest, contents_of
from retrieval_engine.index.milvus_rows import WHOLE, MilvusRows, Place, fill, refuse_foreign, write
from retrieval_engine.index.milvus_server import ITEM, Server, check_uri
from retrieval_engine.index.recipes import Recipe
from retrieval_engine.index.vectors import StoredVectors
from retrieval_engine.strict_json import loads

FILE, KEYS, GONE = "collection.json", "keys.npy", "gone.npy"
_FLAT_ROWS = 200_000  # below, every row is compared
_DELETED = 10_000  # items that one call deletes


@dataclass(frozen=True, slots=True, kw_only=True)
class MilvusOptions:
    """What a recipe may say under `options`.

    Attributes:
        uri: `http://HOST:PORT`, or a `FILE.db` of Milvus Lite.
        collection: alias under which others find the collection; by default made of the folder.
        index_type: FLAT compares every row, HNSW is a graph; auto goes by the number of rows.
        timeout_s: of each call.
        keep_old_s: how long readers of a replaced collection have to open the new one.
        owner: the index folder; `placed` fills it in.
        replaces: the collection of the index that is rebuilt; `placed` fills it in.
    """

    uri: str = ""
    collection: str = ""
    index_type: str = "auto"
    timeout_s: float = 60.0
    keep_old_s: float = 3.0
    owner: str = ""
    replaces: str = ""

    def __post_init__(self) -> None:
        if self.index_type not in ("auto", "FLAT", "HNSW"):
            raise UsageError(f"index_type is {self.index_type!r}; auto, FLAT or HNSW")
        for name in ("timeout_s", "keep_old_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise UsageError(f"{name} is {value!r}; seconds, 0 or more")
        for name in ("uri", "collection", "owner", "replaces"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{name} is {getattr(self, name)!r}; text is needed")
        if self.uri:
            check_uri(self.uri)


def read_options(recipe: Recipe) -> MilvusOptions:
    """Check that a recipe says what Milvus can do.

    Raises:
        UsageError: it has a factory string, or an option that is unknown or cannot be meant.
    """
    if recipe.factory:
        raise UsageError("a factory string is of faiss; Milvus takes the option index_type")
    return typed_options(MilvusOptions, recipe)


def placed(recipe: Recipe, uri: str, out: Path) -> Recipe:
    """The recipe for an index folder: its server, its alias, and what it replaces."""
    options = read_options(recipe)
    owner = str(out.resolve())
    name = re.sub(r"\W", "_", out.resolve().name)
    at = _needed(uri or options.uri)
    old = _place_of(out)
    filled = {
        "uri": at,
        "collection": options.collection or f"vlre_{name}_{digest(owner)[:8]}",
        "owner": owner,
        "replaces": old.collection if old and old.uri == at else "",
    }
    return replace(recipe, options={**recipe.options, **filled})


def _needed(uri: str) -> str:
    if not uri:
        raise UsageError("`uri` is missing: the server's http://HOST:PORT, or a FILE.db")
    return check_uri(uri)


def _place_of(out: Path) -> Place | None:
    """Where the rows of the index in a folder are, if it is one of Milvus."""
    try:
        manifest = IndexManifest.read(out)
        return _read(out / manifest.folder) if (out / manifest.folder / FILE).is_file() else None
    except IndexFailure:
        return None


def build(recipe: Recipe, vectors: StoredVectors, folder: Path, how: How) -> str:
    """As `backends.Backend.build`: a new collection, and in the folder where it is.

    One that a killed build of the same rows left is gone on with.

    Raises:
        UsageError: no server is named.
        FingerprintMismatch: the alias is of an index of another encoder.
        IndexFailure: the alias is of somebody else, or the server failed.
    """
    options = read_options(recipe)
    server = Server(_needed(options.uri), options.timeout_s)
    place = _new_place(options, vectors, server)
    refuse_foreign(server, place)
    parameters: dict[str, int] = {}
    if place.index_type == "HNSW":
        parameters = {"M": 32, "efConstruction": recipe.ef_construction or 80}
    fill(server, place, vectors)
    server.make_searchable(place.collection, place.index_type, parameters)
    if (held := server.count(place.collection)) != vectors.rows:
        server.drop(place.collection)
        raise IndexFailure(
            f"Milvus at {place.uri} holds {held:,} rows after {vectors.rows:,} were written",
            hint="build the index again",
        )
    server.mark(place.collection, {"state": WHOLE})
    kind = "float32" if server.is_lite else "float16"
    _save(MilvusRows(server, place, np.arange(vectors.items, dtype=np.int64), {}), folder)
    return f"{place.index_type},{kind}"


def _new_place(options: MilvusOptions, vectors: StoredVectors, server: Server) -> Place:
    store, alias = vectors.gallery.store, options.collection or "vlre"
    index_type = options.index_type
    if index_type == "auto":
        index_type = "FLAT" if vectors.rows < _FLAT_ROWS else "HNSW"
    place = Place(
        uri=server.uri,
        alias=alias,
        collection="",
        index_type=index_type,
        timeout_s=options.timeout_s,
        keep_old_s=options.keep_old_s,
        owner=options.owner,
        replaces=options.replaces,
        fingerprint=store.fingerprint,
        feature_fingerprint=vectors.feature.fingerprint,
        contents=digest([contents_of(store), vectors.gallery.split or "", vectors.feature.name]),
        per_item=vectors.per_item,
        dim=vectors.dim,
        next_key=vectors.items,
    )
    name = f"{alias}_{digest([place.identity(), index_type])[:16]}"
    # The same rows once more: what is in use stays as it is.
    return replace(place, collection=f"{name}_2" if name == options.replaces else name)


def _save(rows: MilvusRows, folder: Path) -> None:
    """Write down where the rows are."""
    text = json.dumps(asdict(rows.place), indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
    np.save(folder / KEYS, rows.keys)
    np.save(folder / GONE, rows.gone)


def _read(folder: Path) -> Place:
    path = folder / FILE
    try:
        return Place(**loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise IndexFailure(f"cannot read {path}: {error}", hint="build the index again") from error


def open_rows(folder: Path, effort: Mapping[str, int]) -> MilvusRows:
    """The rows that a folder stands for.

    Raises:
        IndexFailure: the server does not answer, or the collection is not there, or half built.
        FingerprintMismatch: it holds vectors of another encoder.
    """
    place = _read(folder)
    server = Server(place.uri, place.timeout_s)
    what = f"collection {place.collection} at {place.uri}"
    again = "build the index again with `build_index()`"
    if (found := server.described(place.collection)) is None:
        raise IndexFailure(f"{what} is not there: it was replaced or dropped", hint=again)
    theirs = found[1]
    if theirs.get("feature_fingerprint") != place.feature_fingerprint:
        seen = theirs.get("fingerprint", "unknown")
        raise FingerprintMismatch(what, seen=seen, expected=place.fingerprint)
    for name, value in place.identity().items():
        if theirs.get(name) != value:
            said = f"{name} {value}, the collection says {theirs.get(name)}"
            raise IndexFailure(f"{what} is of another index: {folder} says {said}", hint=again)
    if theirs.get("state") != WHOLE:
        raise IndexFailure(f"{what} is half built", hint=again)
    keys = np.load(folder / KEYS, mmap_mode="r")
    server.load(place.collection)
    rows = MilvusRows(server, place, keys, effort)
    if (held := server.count(place.collection)) < rows.rows:
        raise IndexFailure(f"{what} holds {held:,} rows, not {rows.rows:,}", hint=again)
    return rows


def extend(
    old: Path, folder: Path, keep: NDArray[np.bool_], blocks: Iterator[NDArray[np.float32]]
) -> None:
    """As `backends.Backend.extend`.

    New rows get keys that no manifest knows yet, and what goes is deleted by `settle`: readers of
    the folder as it is are not disturbed, and a killed update changes nothing that is found.
    """
    was = open_rows(old, {})
    place, server = was.place, was.server
    kept = keep[:: place.per_item]
    at = place.next_key * place.per_item
    server.mark(place.collection, {"changed": "yes"})  # no build goes on with it
    for block in blocks:
        write(server, place, block, at, "upsert")
        at += len(block)
    server.call("flush", place.collection)
    keys = np.concatenate([was.keys[kept], np.arange(place.next_key, at // place.per_item)])
    gone = np.concatenate([np.load(old / GONE), was.keys[~kept]])
    place = replace(place, next_key=at // place.per_item, replaces="")
    _save(MilvusRows(server, place, keys, {}, gone), folder)


def settle(folder: Path, manifest: IndexManifest) -> None:
    """What is to be done once a manifest names a folder: the alias, and what nobody needs now.

    A replaced collection is dropped after `keep_old_s`, so that those who read it open the new one.
    """
    place = _read(folder)
    server = Server(place.uri, place.timeout_s)
    before = server.point(place.alias, place.collection)
    gone = np.load(folder / GONE)
    for start in range(0, len(gone), _DELETED):
        named = gone[start : start + _DELETED].tolist()
        server.call("delete", place.collection, filter=f"{ITEM} in {named}")
    server.mark(place.collection, {"store_contents": manifest.contents, "store": manifest.store})
    old = {before, place.replaces} - {"", place.collection}
    old = {name for name in old if _is_of(server.described(name), place.owner)}
    if old:
        time.sleep(place.keep_old_s)
    for name in old:
        server.drop(name)


def _is_of(found: tuple[str, dict[str, str]] | None, owner: str) -> bool:
    return found is not None and found[1].get("owner") == owner


def version() -> str:
    """Version of the client."""
    return metadata.version("pymilvus")
