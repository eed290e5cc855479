"""Columns out of files: `.npy`, `.npz`, Parquet and plain text, named FILE or FILE:COLUMN."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval_engine.errors import SourceError, UsageError, one_line

IMAGES = ("image_emb", "image_embeddings", "image_embedding", "img_emb", "images", "image")
TEXTS = ("text_emb", "text_embeddings", "text_embedding", "texts", "text")
PAIRS = ("caption_image_index", "caption_image", "image_index", "pairs")
IDS = ("image_names", "image_ids", "image_id", "ids", "id")
CAPTIONS = ("captions", "caption", "blip_captions")

_TABLES = (".npz", ".parquet")


def read_column(name: str, usual: Sequence[str]) -> NDArray[Any]:
    """One array out of a file.

    Args:
        name: `FILE.npy`, or `FILE.npz` or `FILE.parquet` with `:COLUMN` behind it; without one the
            column that is called as usual is taken, or the only one.
        usual: names that such a column often has.

    Returns:
        The array; a `.npy` is mapped, not read. A Parquet column of lists becomes two-dimensional.

    Raises:
        SourceError: the file is missing, broken, or of no known kind.
        UsageError: no column, or none that can be told from the others.
    """
    path, column = _split(name)
    if not path.is_file():
        raise SourceError(f"{path} is not there")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                array: NDArray[Any] = file[_chosen(path, column, list(file), usual)]
                return array
        if path.suffix == ".parquet":
            known = pq.read_schema(path).names
            wanted = _chosen(path, column, known, usual)
            return from_arrow(pq.read_table(path, columns=[wanted])[wanted])
        if path.suffix == ".npy":
            mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped
    except UsageError:  # it is a ValueError, but no sign of a broken file
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise SourceError(f"cannot read {name}: {one_line(error)}") from error
    raise SourceError(f"{path} is of no known kind; known: .npy, .npz, .parquet")


def read_strings(name: str, usual: Sequence[str]) -> list[str]:
    """One string for each row: of a `.txt` its lines, else a column as in `read_column`.

    Raises:
        SourceError, UsageError: as `read_column`.
    """
    path, _ = _split(name)
    if path.suffix == ".txt":
        try:
            with path.open(encoding="utf-8") as lines:  # `splitlines` would cut at U+2028 too
                return [line.rstrip("\n") for line in lines]
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"cannot read {path}: {error}") from error
    return [str(value) for value in read_column(name, usual).tolist()]


def from_arrow(column: Any) -> NDArray[Any]:
    """A Parquet column as an array; lists of one length become its second axis.

    Raises:
        SourceError: the lists have several lengths, or a value is missing.
    """
    column = column.combine_chunks()
    if column.null_count:
        raise SourceError(f"{column.null_count} of {len(column)} values are missing")
    of_lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not of_lists and not pa.types.is_fixed_size_list(column.type):
        array: NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return array
    if of_lists and len(set(pc.list_value_length(column).to_pylist())) > 1:
        raise SourceError("the vectors of the column have several lengths")
    values = column.flatten().to_numpy(zero_copy_only=False)
    rows: NDArray[Any] = values.reshape(len(column), -1 if len(column) else 0)
    return rows


def _split(name: str) -> tuple[Path, str]:
    for suffix in _TABLES:
        head, found, column = name.rpartition(f"{suffix}:")
        if found:
            return Path(os.path.expanduser(head + suffix)), column
    return Path(os.path.expanduser(name)), ""


def _chosen(path: Path, column: str, known: Sequence[str], usual: Sequence[str]) -> str:
    if column in known:
        return column
    if not column:
        found = [name for name in usual if name in known] or (known if len(known) == 1 else [])
        if found:
            return found[0]
    raise UsageError(
        f"{path} has {f'no column {column!r}' if column else 'several columns'}: "
        f"{', '.join(known)}",
        hint=f"name one as {path}:COLUMN",
    )
