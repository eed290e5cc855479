"""Searches asked with vectors, for stores whose encoder is elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.projected import ProjectedStore
from retrieval_engine.errors import ShapeError, SourceError, one_line
from retrieval_engine.records import Modality
from retrieval_engine.search.distinct import distinct_top_k
from retrieval_engine.search.engine import SearchEngine
from retrieval_engine.search.hits import Hit


def read_vectors(path: Path) -> NDArray[Any]:
    """(n, d) vectors of a `.npy`; a single vector counts as one row.

    Raises:
        SourceError: it is no such file, or holds NaN, infinity or a zero vector.
    """
    try:
        vectors: NDArray[Any] = np.atleast_2d(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(
            f"cannot read {path}: {one_line(error)}", hint="a .npy of floating-point numbers"
        ) from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise SourceError(f"{path} holds {vectors.dtype}{list(vectors.shape)}, not vectors")
    bad = ~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1)
    if bad.any():
        raise SourceError(f"row {int(np.argmax(bad))} of {path} holds NaN, infinity or only zeros")
    return vectors


def search_vectors(engine: SearchEngine, vectors: NDArray[Any], k: int = 10) -> list[list[Hit]]:
    """The k images nearest to each of some text vectors.

    Args:
        engine: over the store.
        vectors: (n, d) of the side of captions, as they were imported: of any length, and not
            projected, which is done here where the store is seen through a head.
        k: at least 1.

    Raises:
        ShapeError: the width is another one than the store's.
    """
    if isinstance(engine.store, ProjectedStore):
        queries = engine.store.saved.head.project(Modality.CAPTIONS, vectors)[:, 0]
    else:
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        queries = (vectors / lengths).astype(np.float32)
    if queries.shape[1] != engine.index.dim:
        raise ShapeError(
            f"the queries have {queries.shape[1]} dimensions, the images {engine.index.dim}",
            hint="give vectors of the encoder that the store was made with",
        )
    scores, items = distinct_top_k(engine.index, engine.catalog, queries, k)
    return [engine.hits(s, i) for s, i in zip(scores, items, strict=True)]
