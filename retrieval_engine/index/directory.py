"""An index as a folder: opened by mapping it, replaced in one move.

index/
├── manifest.json       the commit point: names the folder with the data
└── data-0a1b2c3d/      vectors and items of one build
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from retrieval_engine.durable import refuse_url, sync_directory
from retrieval_engine.errors import HubFailure, IndexFailure, UsageError, one_line
from retrieval_engine.index import backends
from retrieval_engine.index.build_record import MANIFEST, IndexManifest
from retrieval_engine.index.catalog import SavedCatalog
from retrieval_engine.index.grouping import (
    GroupedIndex,
    RowSearch,
)
from retrieval_engine.locks import FileLock, Taken
from retrieval_engine.network import from_hub, hub_id

# Up to this many bytes an index is hashed when it is opened: a tenth of a second at most.
_CHEAP_BYTES = 200_000_000
_DATA = "data-"
_LOCK = "build.lock"
_TRIES = 5


class SavedIndex(GroupedIndex):
    """An index folder, open for search; item numbers are positions in `catalog`.

    Args:
        path: the folder.
        manifest: what is in it.
        rows: its vectors.
    """

    def __init__(self, path: Path, manifest: IndexManifest, rows: RowSearch) -> None:
        super().__init__(rows, manifest.rows_per_item)
        self.path = path
        self.manifest = manifest
        self.catalog = SavedCatalog.open(path / manifest.folder)
        if rows.rows != manifest.rows or len(self.catalog) != manifest.items:
            raise IndexFailure(
                f"{path} holds {rows.rows:,} rows of {len(self.catalog):,} items, its manifest "
                f"says {manifest.rows:,} of {manifest.items:,}",
                hint="build the index again",
            )


def open_index(path: str | Path, *, verify: bool | None = None) -> SavedIndex:
    """Open an index folder.

    Its vectors are mapped into memory, so that opening takes milliseconds at any size.

    Args:
        path: the folder, or the hub id of one that was pushed.
        verify: compare the files with their checksums, about a second a gigabyte. None does so up
            to 200 MB and compares lengths alone above.

    Raises:
        IndexFailure: there is no index, or it is damaged; nothing is returned from a damaged one.
    """
    path = Path(path)
    refuse_url(path, "an index")
    if name := hub_id(path):
        try:
            path = from_hub("index", name)
        except HubFailure as error:
            raise IndexFailure(
                f"no index at {name}: {error.message}",
                hint=error.hint or "build one with `build_index()`",
            ) from error
    for _ in range(_TRIES):
        manifest = IndexManifest.read(path)
        try:
            return _open(path, manifest, verify)
        except (IndexFailure, OSError) as error:
            # A build that ended just now took the files of the manifest we read.
            if IndexManifest.read(path) != manifest:
                continue
            if isinstance(error, IndexFailure):
                raise
            raise IndexFailure(f"cannot read {path}: {one_line(error)}") from error
    raise IndexFailure(f"{path} is being replaced again and again", hint="try again")


def _open(path: Path, manifest: IndexManifest, verify: bool | None) -> SavedIndex:
    manifest.check_files(path, content=manifest.bytes <= _CHEAP_BYTES if verify is None else verify)
    rows = backends.load(manifest.backend).open_rows(path / manifest.folder, manifest.effort)
    return SavedIndex(path, manifest, rows)


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new folder inside `out` for the files of an index, which takes effect when the block ends.

    The block leaves a manifest in it; that is moved over the manifest of `out`, in one step. Before
    it the old index is there, after it the new one, and never none.

    Raises:
        UsageError: `out` is there and is no index; it will not be deleted for one.
        IndexFailure: the disk refuses, or another build is at work.
    """
    refuse_url(out, "an index")
    if out.exists() and not (out / MANIFEST).is_file() and not _is_unfinished(out):
        raise UsageError(
            f"{out} is there and is no index", hint="name a folder that does not exist yet"
        )
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _building(out):
            _sweep(out)
            data = out / f"{_DATA}{secrets.token_hex(4)}"
            data.mkdir()
            try:
                yield data
                _sync(data)
                os.replace(data / MANIFEST, out / MANIFEST)
                sync_directory(out)
            finally:
                _sweep(out)
    except OSError as error:
        raise IndexFailure(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # not empty: the index is there
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def _building(out: Path) -> Iterator[None]:
    try:
        lock = FileLock(out / _LOCK)
    except Taken as error:
        raise IndexFailure(
            f"{out} is being built by {error.owner}",
            hint="wait for it to end, or build another index",
        ) from error
    try:
        yield
    finally:
        lock.release(remove=True)


def _is_unfinished(out: Path) -> bool:
    """Whether nothing lies in a folder but what a killed first build left."""
    return out.is_dir() and all(_is_ours(path.name) for path in out.iterdir())


def _is_ours(name: str) -> bool:
    return name == _LOCK or re.fullmatch(f"{_DATA}[0-9a-f]{{8}}", name) is not None


def _sweep(out: Path) -> None:
    """Take away what the manifest does not name: data of replaced and of killed builds."""
    try:
        current = IndexManifest.read(out) if (out / MANIFEST).is_file() else None
    except IndexFailure:  # damaged: whose data is whose will be known after the next build
        return
    for path in out.iterdir():
        if path.is_dir() and path.name.startswith(_DATA) and _is_ours(path.name):
            if current is None or path.name != current.folder:
                shutil.rmtree(path, ignore_errors=True)
        elif current and current.folder and path.name in {file.name for file in current.files}:
            path.unlink()  # of an index as it was laid out before


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        if path.stat().st_nlink > 1:  # a second name of a file that was synced under its first
            continue
        with path.open("r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
    sync_directory(folder)
