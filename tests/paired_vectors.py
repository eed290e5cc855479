"""Pairs of image and text vectors that share something, in stores and in files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding import Embeddings, import_embeddings
from retrieval_engine.encoding.vector_set import Vectors
from retrieval_engine.store import Store, open_store

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def views(
    n: int, widths: tuple[int, int] = (24, 40), *, captions: int = 2, seed: int = 0
) -> tuple[Floats, Floats, Ints]:
    """(n, w) images, (captions * n, v) texts and the image of each text.

    Each view is a non-linear function of ten common factors, with noise of its own and a mean.
    The functions are the same for every seed; what is drawn with them is not.
    """
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    factors = rng.standard_normal((n, 10))
    owner = np.repeat(np.arange(n), captions)
    made = []
    for rows, width in ((factors, widths[0]), (factors[owner], widths[1])):
        inner, outer = fixed.standard_normal((10, 64)), fixed.standard_normal((64, width))
        offset = fixed.standard_normal(width)
        noisy = rows + 0.4 * rng.standard_normal(rows.shape)
        made.append((np.tanh(noisy @ inner) @ outer + offset).astype(np.float32))
    return made[0], made[1], owner


def embeddings(images: Floats, texts: Floats, owner: Ints) -> Embeddings:
    """The arrays as an import."""
    return Embeddings(
        images=Vectors(name="images", rows=images),
        texts=Vectors(name="texts", rows=texts),
        caption_image=owner,
    )


def paired_store(
    path: Path,
    n: int,
    widths: tuple[int, int] = (24, 40),
    *,
    captions: int = 2,
    seed: int = 0,
    name: str = "made",
    split: str = "",
) -> Store:
    """A store of such pairs, imported; added to what is there."""
    given = embeddings(*views(n, widths, captions=captions, seed=seed))
    import_embeddings(given, path, name=name, split=split)
    return open_store(path)
