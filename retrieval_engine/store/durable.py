"""Writing files so that a crash leaves the old state or the new one, never a mixture."""

import hashlib
import os
from pathlib import Path

from retrieval_engine.errors import StoreError

PARTIAL = ".partial"


def replace_file(path: Path, data: bytes) -> None:
    """Put a file in place at once: a reader sees the old bytes or the new ones, never a mixture.

    Raises:
        StoreError: the disk refuses.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_directory(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


def publish(partial: Path, final: Path) -> tuple[int, str]:
    """Force a finished file to disk, hash it and give it its final name.

    Returns:
        Its size in bytes and its sha256. The caller syncs the directory once for all.
    """
    with partial.open("rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = os.fstat(file.fileno()).st_size
    os.replace(partial, final)
    return size_bytes, sha256


def sync_directory(path: Path) -> None:
    """Make renames inside a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
