"""What an import is given, checked: vectors of both sides, and which belong together.

Columns come out of `.npy`, `.npz`, Parquet and plain text, named FILE or FILE:COLUMN.
"""

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval_engine import arrow as pc
from retrieval_engine.errors import ShapeError, SourceError, UsageError, one_line
from retrieval_engine.records import Json

_BLOCK_ROWS = 16384
IMAGES = ("image_emb", "image_embeddings", "image_embedding", "img_emb", "images", "image")
TEXTS = ("text_emb", "text_embeddings", "text_embedding", "texts", "text")
PAIRS = ("caption_image_index", "caption_image", "image_index", "pairs")
IDS = ("image_names", "image_ids", "image_id", "ids", "id")
CAPTIONS = ("captions", "caption", "blip_captions")

_TABLES = (".npz", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vectors:
    """Rows of one side.

    Attributes:
        name: of the file, for messages.
        rows: (n, w) floating.
    """

    name: str
    rows: NDArray[Any]

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.dtype.kind != "f" or 0 in self.rows.shape:
            raise ShapeError(
                f"{self.name} holds {self.rows.dtype}{list(self.rows.shape)}; vectors are floating "
                "[rows, width]"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """Dimensions of a vector."""
        return int(self.rows.shape[1])

    @property
    def dtype(self) -> str:
        """What they are kept in: float16 as given, anything else as float32."""
        return "float16" if self.rows.dtype == np.float16 else "float32"

    def check(self) -> None:
        """Refuse rows that would poison every score.

        Raises:
            SourceError: NaN, infinity or a zero vector; the message names the row.
        """
        for start in range(0, len(self), _BLOCK_ROWS):
            block = self.rows[start : start + _BLOCK_ROWS].astype(self.dtype)
            for what, bad in (
                ("NaN or infinity", ~np.isfinite(block).all(axis=1)),
                ("only zeros", ~block.any(axis=1)),
            ):
                if bad.any():
                    first = start + int(np.argmax(bad))
                    raise SourceError(
                        f"row {first} of {self.name} holds {what}",
                        hint="vectors must be finite and not zero; leave such rows out",
                    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Everything about an import but its name.

    Attributes:
        images: one vector for each image.
        texts: one vector for each caption, or None.
        caption_image: (m,) row in `images` of each caption.
        ids: of the images, unique; empty to derive them from the vectors.
        captions: the sentences; empty to derive names from the vectors.
        uris: where the pictures are; empty when unknown.
        meta: what else is known about each image; empty for nothing.
    """

    images: Vectors
    texts: Vectors | None = None
    caption_image: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: Sequence[str] = ()
    captions: Sequence[str] = ()
    uris: Sequence[str] = ()
    meta: Sequence[Mapping[str, Json]] = ()

    def __post_init__(self) -> None:
        n, m = len(self.images), len(self.texts or ())
        for what, values, rows, side in (
            ("ids", self.ids, n, "images"),
            ("uris", self.uris, n, "images"),
            ("captions", self.captions, m, "texts"),
        ):
            if values and len(values) != rows:
                raise SourceError(f"there are {len(values)} {what} for {rows} {side}")
        if len(set(self.ids)) != len(self.ids):
            seen: set[str] = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise SourceError(f"id {twice!r} stands for several images; ids must differ")
        if self.caption_image.shape != (m,):
            raise SourceError(
                f"there are {len(self.caption_image)} pairs for {m} texts; P[j] is the image row "
                "of text j"
            )
        wrong = np.flatnonzero((self.caption_image < 0) | (self.caption_image >= n))
        if len(wrong):
            raise SourceError(
                f"text {wrong[0]} belongs to image row {self.caption_image[wrong[0]]}, "
                f"but there are only {n} images"
            )

    def check(self) -> None:
        """Refuse rows that are no vectors; see `Vectors.check`."""
        self.images.check()
        if self.texts is not None:
            self.texts.check()


def read_embeddings(
    images: str,
    texts: str | None = None,
    *,
    pairs: str | None = None,
    ids: str | None = None,
    captions: str | None = None,
    uris: str | None = None,
) -> Embeddings:
    """Embeddings from files, each named FILE or FILE:COLUMN as in `read_column`.

    Args:
        images: vectors of the images.
        texts: vectors of the captions.
        pairs: image row of each text; without it text j belongs to image j.
        ids: one for each image.
        captions: a sentence for each text.
        uris: where each picture is.

    Raises:
        SourceError, ShapeError, UsageError: a file is not what it must be, or they do not fit
            together.
    """
    pictures = Vectors(name=images, rows=read_column(images, IMAGES))
    sentences = None
    if texts is not None:
        sentences = Vectors(name=texts, rows=read_column(texts, TEXTS))
    return Embeddings(
        images=pictures,
        texts=sentences,
        caption_image=_pairing(pairs, pictures, sentences),
        ids=read_strings(ids, IDS) if ids else (),
        captions=read_strings(captions, CAPTIONS) if captions else (),
        uris=read_strings(uris, ("uri", "path", "image_path")) if uris else (),
    )


def _pairing(pairs: str | None, images: Vectors, texts: Vectors | None) -> NDArray[np.int64]:
    if texts is None:
        if pairs:
            raise SourceError(f"{pairs} pairs texts with images, but no texts were given")
        return np.zeros(0, np.int64)
    if pairs is None:
        if len(texts) != len(images):
            raise SourceError(
                f"{len(images)} images and {len(texts)} texts: which belong together?",
                hint="give `pairs='P.npy'`, where P[j] is the image row of text j",
            )
        return np.arange(len(texts))
    found = read_column(pairs, PAIRS)
    whole = found.dtype.kind in "iu" or (found.dtype.kind == "f" and (found == found.round()).all())
    if found.ndim != 1 or not whole:
        raise ShapeError(
            f"{pairs} holds {found.dtype}{list(found.shape)}; pairs are one whole number a text"
        )
    return found.astype(np.int64)


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
