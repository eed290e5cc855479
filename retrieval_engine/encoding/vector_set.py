"""What an import is given, checked: vectors of both sides, and which belong together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding import vector_arrays as arrays
from retrieval_engine.errors import ShapeError, SourceError
from retrieval_engine.records import Json

_BLOCK_ROWS = 16384


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
    """Embeddings from files, each named FILE or FILE:COLUMN as in `arrays.read_column`.

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
    pictures = Vectors(name=images, rows=arrays.read_column(images, arrays.IMAGES))
    sentences = None
    if texts is not None:
        sentences = Vectors(name=texts, rows=arrays.read_column(texts, arrays.TEXTS))
    return Embeddings(
        images=pictures,
        texts=sentences,
        caption_image=_pairing(pairs, pictures, sentences),
        ids=arrays.read_strings(ids, arrays.IDS) if ids else (),
        captions=arrays.read_strings(captions, arrays.CAPTIONS) if captions else (),
        uris=arrays.read_strings(uris, ("uri", "path", "image_path")) if uris else (),
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
    found = arrays.read_column(pairs, arrays.PAIRS)
    whole = found.dtype.kind in "iu" or (found.dtype.kind == "f" and (found == found.round()).all())
    if found.ndim != 1 or not whole:
        raise ShapeError(
            f"{pairs} holds {found.dtype}{list(found.shape)}; pairs are one whole number a text"
        )
    return found.astype(np.int64)
