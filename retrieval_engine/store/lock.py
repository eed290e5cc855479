"""One writer per store."""

from pathlib import Path

from retrieval_engine.errors import StoreError
from retrieval_engine.locks import FileLock, Taken
from retrieval_engine.store.manifest import LOCK


def lock_store(path: Path) -> FileLock:
    """Hold a store for writing until released.

    Args:
        path: directory of the store.

    Raises:
        StoreError: another writer holds it (the message says which), or locks do not work there.
    """
    try:
        return FileLock(path / LOCK)
    except Taken as error:
        raise StoreError(
            f"{path} is being written by {error.owner}",
            hint="wait for it to end, or write to another `store`",
        ) from error
    except OSError as error:
        raise StoreError(f"cannot lock {path}: {error.strerror or error}") from error
