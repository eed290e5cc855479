"""Stores of a few random vectors, for tests of what reads a store."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.metrics.pair_scores import Ints, Vectors
from retrieval_engine.records import Caption, Feature, Item, Modality
from retrieval_engine.store import StoreWriter

SPEC = EncoderSpec(
    family="external", checkpoint="tests", weights={"vision": "v", "image": "i", "text": "t"}
)


def vectors(seed: int, n: int, per_image: int, q: int = 1, d: int = 16) -> tuple[Vectors, Vectors]:
    """(n, q, d) images and (n * per_image, 1, d) captions near theirs, unit length, float16."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((n, q, d))
    captions = images[:, :1].repeat(per_image, axis=0) + rng.standard_normal((n * per_image, 1, d))
    images /= np.linalg.norm(images, axis=-1, keepdims=True)
    captions /= np.linalg.norm(captions, axis=-1, keepdims=True)
    return images.astype(np.float16), captions.astype(np.float16)


def write_store(
    path: Path,
    images: Vectors,
    captions: Vectors,
    caption_image: Ints,
    *,
    splits: Sequence[str] | None = None,
    source: str = "folder:/pictures",
    contents: Mapping[int, bytes] | None = None,
    spec: EncoderSpec = SPEC,
) -> None:
    """Write one store: image i is item `i.jpg`, caption j reads `caption j`.

    Args:
        path: where.
        images: (n, q, d).
        captions: (m, r, d).
        caption_image: (m,) image of each caption.
        splits: of the images; none by default.
        source: name of the source.
        contents: bytes that stand for image i instead of its number, to make two alike.
        spec: the encoder.
    """
    features = {
        Modality.IMAGES: [_feature(images, spec.part("image"))],
        Modality.CAPTIONS: [_feature(captions, spec.part("text"))],
    }
    texts = [
        [Caption(id=f"{i}#{j}", text=f"caption {j}") for j in np.flatnonzero(caption_image == i)]
        for i in range(len(images))
    ]
    keys = [
        hashlib.sha256((contents or {}).get(i, f"{path} {i}".encode())).hexdigest()
        for i in range(len(images))
    ]
    items = [
        (
            Item(
                id=f"{i}.jpg",
                uri=f"/pictures/{i}.jpg",
                captions=tuple(texts[i]),
                split=splits[i] if splits else "",
            ),
            keys[i],
        )
        for i in range(len(images))
    ]
    order = [Caption(id="", text=f"caption {j}").key for j in range(len(captions))]
    with StoreWriter.open(path, spec=spec, features=features) as writer:
        part = writer.part()
        part.add(Modality.IMAGES, keys, {"itc": images})
        part.add(Modality.CAPTIONS, order, {"itc": captions})
        part.add_items(source, items)
        part.commit()


def _feature(rows: Vectors, fingerprint: str) -> Feature:
    return Feature(name="itc", shape=rows.shape[1:], dtype=str(rows.dtype), fingerprint=fingerprint)
