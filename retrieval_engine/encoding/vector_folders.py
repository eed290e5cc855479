"""The folder that clip-retrieval writes: img_emb/, text_emb/ and metadata/ in numbered parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval_engine.encoding.vector_set import Embeddings, Vectors
from retrieval_engine.errors import SourceError
from retrieval_engine.records import Json

_PLACES = ("image_path", "uri", "url")
_NAMES = ("key", "image_path", "id", "url")


def read_clip_retrieval(folder: Path) -> Embeddings:
    """Everything in a folder of clip-retrieval; row i of each table is the same image.

    Args:
        folder: holds `img_emb/*.npy`, and where they were written `text_emb/*.npy` and
            `metadata/*.parquet`.

    Raises:
        SourceError: no such folder, or its tables have different lengths.
    """
    images = _joined(folder / "img_emb", folder)
    if images is None:
        raise SourceError(
            f"{folder} has no img_emb/*.npy", hint="give a folder that clip-retrieval wrote"
        )
    texts = _joined(folder / "text_emb", folder)
    if texts is not None and len(texts) != len(images):
        raise SourceError(f"{folder} has {len(images)} image and {len(texts)} text vectors")
    table = _metadata(folder / "metadata")
    if table is not None and len(table) != len(images):
        raise SourceError(f"{folder} has {len(images)} vectors and {len(table)} rows of metadata")
    columns: dict[str, list[Any]] = table.to_pydict() if table is not None else {}
    captions = [str(text) for text in columns.get("caption", ())]
    if texts is None or not all(captions):
        captions = []
    return Embeddings(
        images=Vectors(name=str(folder / "img_emb"), rows=images),
        texts=None if texts is None else Vectors(name=str(folder / "text_emb"), rows=texts),
        caption_image=np.arange(0 if texts is None else len(texts)),
        ids=_first(columns, _NAMES, unique=True),
        captions=captions,
        uris=_first(columns, _PLACES, unique=False),
        meta=_meta(columns, len(images)),
    )


def _joined(folder: Path, root: Path) -> NDArray[Any] | None:
    files = sorted(folder.glob("*.npy"), key=_number)
    if not files:
        return None
    try:
        parts = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
        joined: NDArray[Any] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"cannot read the vectors in {root}: {error}") from error
    return joined


def _number(file: Path) -> tuple[int, str]:
    """Parts are numbered without leading zeros: 10 comes after 9."""
    digits = "".join(c for c in file.stem if c.isdigit())
    return int(digits or 0), file.name


def _metadata(folder: Path) -> Any:
    files = sorted(folder.glob("*.parquet"), key=_number)
    if not files:
        return None
    try:
        return pa.concat_tables([pq.read_table(f) for f in files], promote_options="default")
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"cannot read {folder}: {error}") from error


def _first(columns: dict[str, list[Any]], names: tuple[str, ...], *, unique: bool) -> list[str]:
    for name in names:
        values = [str(value) for value in columns.get(name, ()) if value]
        whole = len(values) == len(columns.get(name, ()))
        if values and whole and (not unique or len(set(values)) == len(values)):
            return values
    return []


def _meta(columns: dict[str, list[Any]], rows: int) -> list[dict[str, Json]]:
    plain = {
        name: values
        for name, values in columns.items()
        if name != "caption" and all(isinstance(v, str | int | float | bool | None) for v in values)
    }
    if not plain:
        return []
    return [
        {name: values[i] for name, values in plain.items() if _is_json(values[i])}
        for i in range(rows)
    ]


def _is_json(value: object) -> bool:
    return value is not None and value == value and value not in (float("inf"), -float("inf"))
