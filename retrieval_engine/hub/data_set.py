"""A store's vectors as Parquet, so that `datasets.load_dataset` opens what was pushed.

Two tables, each with a folder a split: `images` (id, sha256, captions, features) and `captions` (id,
image_id, text, features). States of the towers (`tokens`) stay in the shards, which are pushed too.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval_engine.records import Modality
from retrieval_engine.store import Gallery, Store

FOLDER = "data"
UNSPLIT = "unsplit"
_STATES = ("tokens", "token_ids", "token_mask")
_FILE_BYTES, _BLOCK_ROWS = 256_000_000, 2048


def write_data_set(store: Store, folder: Path) -> list[dict[str, Any]]:
    """Write the tables below a folder.

    Args:
        store: its live items are written, with features that all of them have.
        folder: gets `data/TABLE/SPLIT-00000.parquet`, ….

    Returns:
        The `configs` of the data set's card.
    """
    files: dict[Modality, list[dict[str, str]]] = {modality: [] for modality in Modality}
    for split in sorted(set(store.items()["split"].to_pylist())):
        gallery = store.gallery(split) if split else _unsplit(store.gallery())
        name = re.sub(r"\W", "_", split) or UNSPLIT
        for modality in Modality:
            place = folder / FOLDER / str(modality)
            place.mkdir(parents=True, exist_ok=True)
            if _write(gallery, modality, place / name):
                path = f"{FOLDER}/{modality}/{name}-*.parquet"
                files[modality].append({"split": name, "path": path})
    return [
        {"config_name": str(modality), "data_files": found} | ({"default": True} if first else {})
        for first, (modality, found) in zip((True, False), files.items(), strict=True)
        if found
    ]


def _unsplit(whole: Gallery) -> Gallery:
    some = np.flatnonzero([not split for split in whole.splits])
    return whole if len(some) == len(whole) else whole.only(some)


def _write(gallery: Gallery, modality: Modality, stem: Path) -> int:
    """Write one table of one split; the number of its files."""
    rows = gallery.image_rows if modality is Modality.IMAGES else gallery.caption_rows
    there = np.flatnonzero(rows >= 0)
    names = _features(gallery.store, modality, rows[there])
    forms = gallery.store.features(modality)
    row_bytes = sum(int(np.prod(forms[n].shape)) * np.dtype(forms[n].dtype).itemsize for n in names)
    most = max(_BLOCK_ROWS, _FILE_BYTES // max(1, row_bytes))
    starts = range(0, len(there), most)
    for number, start in enumerate(starts):
        path = stem.with_name(f"{stem.name}-{number:05d}.parquet")
        blocks = _blocks(gallery, modality, names, there[start : start + most], rows)
        first = next(blocks)
        with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            for block in blocks:
                writer.write_table(block)
    return len(starts)


def _features(store: Store, modality: Modality, rows: NDArray[np.int64]) -> list[str]:
    """Vectors that every row has."""
    return [
        name
        for name in store.features(modality)
        if name not in _STATES and bool(store.having(modality, name, rows).all())
    ]


def _blocks(
    gallery: Gallery,
    modality: Modality,
    names: Sequence[str],
    places: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> Iterator[Any]:
    for start in range(0, len(places), _BLOCK_ROWS):
        some = places[start : start + _BLOCK_ROWS]
        known = _images if modality is Modality.IMAGES else _captions
        columns = dict(known(gallery, some.tolist()))
        for name in names:
            columns[name] = vector_column(gallery.store.read(modality, name, rows[some]))
        yield pa.table(columns)


def _images(gallery: Gallery, places: Sequence[int]) -> Mapping[str, Any]:
    texts = [[gallery.caption_texts[j] for j in gallery.captions_of(i)] for i in places]
    return {
        "id": [gallery.ids[i] for i in places],
        "sha256": [gallery.keys[i] for i in places],
        "captions": pa.array(texts, pa.list_(pa.string())),
    }


def _captions(gallery: Gallery, places: Sequence[int]) -> Mapping[str, Any]:
    return {
        "id": [gallery.caption_ids[j] for j in places],
        "image_id": [gallery.ids[int(gallery.caption_image[j])] for j in places],
        "text": [gallery.caption_texts[j] for j in places],
    }


def vector_column(block: NDArray[Any]) -> Any:
    """(n, *shape) as an Arrow column whose cells are lists of lists of these sizes."""
    column = pa.array(np.ascontiguousarray(block).reshape(-1))
    for side in reversed(block.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, side)
    return column
