"""An index as a folder: opened by mapping it, replaced in one move."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.durable import refuse_url
from retrieval_engine.errors import IndexFailure, UsageError
from retrieval_engine.index import backends
from retrieval_engine.index.catalog import SavedCatalog
from retrieval_engine.index.grouping import (
    Items,
    RowSearch,
    Scores,
    check_queries,
    grouped_top_k,
)
from retrieval_engine.index.manifest import MANIFEST, Manifest

# Up to this many bytes an index is hashed when it is opened: a tenth of a second at most.
_CHEAP_BYTES = 200_000_000


class SavedIndex:
    """An index folder, open for search; an `Index`.

    Args:
        path: the folder.
        manifest: what is in it.
        rows: its vectors.
    """

    def __init__(self, path: Path, manifest: Manifest, rows: RowSearch) -> None:
        self.path = path
        self.manifest = manifest
        self.catalog = SavedCatalog.open(path)
        self._rows = rows
        if rows.rows != manifest.rows or len(self.catalog) != manifest.items:
            raise IndexFailure(
                f"{path} holds {rows.rows:,} rows of {len(self.catalog):,} items, its manifest "
                f"says {manifest.rows:,} of {manifest.items:,}",
                hint="build the index again",
            )

    @property
    def items(self) -> int:
        """Number of items."""
        return self.manifest.items

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.manifest.dim

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[Scores, Items]:
        """As `Index.search`; item numbers are positions in `catalog`."""
        queries = check_queries(queries, self.dim, k)
        return grouped_top_k(self._rows, queries, k, self.manifest.rows_per_item)


def open_index(path: str | Path, *, verify: bool | None = None) -> SavedIndex:
    """Open an index folder.

    Its vectors are mapped into memory, so that opening takes milliseconds at any size.

    Args:
        path: the folder.
        verify: compare the files with their checksums, about a second a gigabyte. None does so up
            to 200 MB and compares lengths alone above.

    Raises:
        IndexFailure: there is no index, or it is damaged; nothing is returned from a damaged one.
    """
    path = Path(path)
    refuse_url(path, "an index")
    manifest = Manifest.read(path)
    manifest.check_files(path, content=manifest.bytes <= _CHEAP_BYTES if verify is None else verify)
    rows = backends.load(manifest.backend).open_rows(path, manifest.effort)
    return SavedIndex(path, manifest, rows)


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well.

    Raises:
        UsageError: `out` is there and is no index; it will not be deleted for one.
        IndexFailure: the disk refuses.
    """
    refuse_url(out, "an index")
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"{out} is there and is no index", hint="name a folder that does not exist yet"
        )
    # abspath, not resolve: a link named `out` is replaced, not what it points to.
    out = Path(os.path.abspath(out))
    made, previous = (out.with_name(f".{out.name}.{w}-{os.getpid()}") for w in ("new", "old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        made.mkdir()
        yield made
        _sync(made)
        if out.exists():
            out.rename(previous)
        made.rename(out)
    except OSError as error:
        if previous.exists() and not out.exists():
            previous.rename(out)
        raise IndexFailure(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Clear away what builds left beside `out` that were killed."""
    for left in out.parent.glob(f".{out.name}.*-*"):
        word, _, process = left.name.removeprefix(f".{out.name}.").partition("-")
        if word not in ("new", "old") or not process.isdigit() or _is_running(int(process)):
            continue
        if word == "old" and not out.exists():
            left.rename(out)  # killed between the two moves of a swap
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
