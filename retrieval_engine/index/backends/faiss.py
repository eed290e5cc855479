"""Rows in a faiss index; needs the extra `cpu` (faiss-cpu) or `gpu` (faiss-gpu), never both."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import IndexFailure, UsageError
from retrieval_engine.index.backends import How, typed_options
from retrieval_engine.index.faiss_gpu import coarse_steps_by, gpu_copier
from retrieval_engine.index.faiss_parameters import (
    import_faiss,
    keep_half_precision_whole,
    rotate_only,
    set_parameters,
)
from retrieval_engine.index.faiss_parts import (
    extend_parts,
    parts_in,
    read_part,
    reason,
    write_parts,
)
from retrieval_engine.index.faiss_rows import FaissRows
from retrieval_engine.index.recipes import Recipe
from retrieval_engine.index.vectors import StoredVectors
from retrieval_engine.machine import threads_wanted

_THREADED_ROWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FaissOptions:
    """None of its own: a faiss recipe is its factory string."""


def read_options(recipe: Recipe) -> FaissOptions:
    """Check that a recipe says what faiss needs.

    Raises:
        UsageError: it has no factory string, or options.
    """
    if not recipe.factory:
        raise UsageError("`factory` is missing; it is a faiss factory string")
    return typed_options(FaissOptions, recipe)


def build(recipe: Recipe, vectors: StoredVectors, folder: Path, how: How) -> str:
    """As `backends.Backend.build`; memory holds one part of the index at a time.

    Raises:
        UsageError: faiss does not understand the factory string.
        IndexFailure: training or adding failed.
    """
    faiss = import_faiss()
    _set_threads(vectors.rows)
    factory = recipe.factory_for(vectors.rows, vectors.dim)
    try:
        index = faiss.index_factory(vectors.dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UsageError(f"faiss cannot make {factory!r}: {reason(error)}") from error
    try:
        if recipe.ef_construction:
            set_parameters(index, {"efConstruction": recipe.ef_construction})
        keep_half_precision_whole(index)
        copy, why_not = gpu_copier(how.device)
        if why_not:
            how.progress.say(why_not)
        if not index.is_trained:
            sample = vectors.sample(_training_rows(factory), how.seed)
            rotate_only(index, sample)
            with coarse_steps_by(copy, index):
                index.train(sample)
            del sample
        write_parts(index, vectors.blocks(), folder, copy)
    except RuntimeError as error:
        raise IndexFailure(f"faiss cannot build {factory!r}: {reason(error)}") from error
    return factory


def _set_threads(rows: int) -> None:
    import_faiss().omp_set_num_threads(threads_wanted() if rows >= _THREADED_ROWS else 1)


def _training_rows(factory: str) -> int:
    """How many rows training wants: 64 a list, and enough for a product quantiser."""
    lists = re.search(r"IVF(\d+)", factory)
    return max(65_536, 64 * int(lists[1]) if lists else 0)


def open_rows(folder: Path, effort: Mapping[str, int]) -> FaissRows:
    """The index of a folder, mapped into memory: it opens in milliseconds at any size.

    Raises:
        IndexFailure: faiss cannot read a file.
    """
    return FaissRows([read_part(path, mapped=True) for path in parts_in(folder)], effort)


def extend(
    old: Path, folder: Path, keep: NDArray[np.bool_], blocks: Iterator[NDArray[np.float32]]
) -> None:
    """As `backends.Backend.extend`.

    Raises:
        IndexFailure: this kind of index takes no rows away, or the library failed.
    """
    _set_threads(len(keep))
    try:
        extend_parts(old, folder, keep, blocks)
    except RuntimeError as error:
        raise IndexFailure(
            f"faiss cannot update {old}: {reason(error)}",
            hint="build it again with `build_index()`; recipes of flat and ivf kind take rows away",
        ) from error


def version() -> str:
    """Version of the library."""
    return str(import_faiss().__version__)
