"""Writing files so that a crash leaves the old state or the new one, never a mixture.

A file that is being written has a name of its own, `NAME.TOKEN.partial`, and is made with `O_EXCL`:
neither a file that is there nor the target of a planted link can be overwritten through it.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from retrieval_engine.errors import StoreError, UsageError

PARTIAL = ".partial"


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the place of `path` when the block ends well.

    A reader sees the old bytes or the new ones, never a mixture. After a failure nothing is left.

    Raises:
        OSError: the disk refuses.
    """
    partial = partial_of(path)
    try:
        with writing(path):
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the disk within the block name this file, and are `OSError`, whoever wrote.

    A failing write of Python names no file at all, and libraries in C++ and Rust have errors of
    their own for it.
    """
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
    except Exception as error:  # safetensors, tokenizers and torch raise what they like
        if code := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors, tokenizers
            number = int(code[1])
        elif re.search(r"No space left|file write failed|failed writing file", str(error)):  # torch
            number = errno.ENOSPC
        else:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def replace_file(path: Path, data: bytes) -> None:
    """Put a file in place at once; see `replacing_file`.

    Raises:
        StoreError: the disk refuses.
    """
    try:
        with replacing_file(path) as file:
            file.write(data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


def partial_of(path: Path) -> Path:
    """A name beside `path` that nobody can foresee, for the file that will become it."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def refuse_url(path: Path, what: str) -> None:
    """Refuse an address where only a path of this machine works, before anything is made of it.

    Args:
        path: as given; `Path` makes `s3:/bucket` of `s3://bucket`.
        what: noun for the message, e.g. `a store`.

    Raises:
        UsageError: it begins with a scheme such as `s3:`.
    """
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", str(path)):
        rest = str(path)[scheme.end() :]
        raise UsageError(
            f"{what} at {scheme[1]}://{rest} is not possible: only folders of this machine work",
            hint="use a local folder, and copy it where it is wanted",
        )


def publish(partial: Path, final: Path) -> tuple[int, str]:
    """Force a finished file to disk, hash it and give it its final name.

    Returns:
        Its size in bytes and its sha256. The caller syncs the directory once for all.
    """
    with partial.open("r+b") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = os.fstat(file.fileno()).st_size
    os.replace(partial, final)
    return size_bytes, sha256


def sync_directory(path: Path) -> None:
    """Make renames inside a directory survive a power cut; Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links.

    Raises:
        OSError: the disk refuses.
    """
    try:
        os.link(source.resolve(), target)  # of a link the file behind it
    except OSError:  # another file system, or one that has no links
        shutil.copyfile(source, target)
