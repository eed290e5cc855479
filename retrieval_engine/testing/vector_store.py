"""Small real stores made of given vectors, for what needs no model."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.records import Caption, Feature, Item, Modality
from retrieval_engine.store import Store, StoreWriter, open_store

SOURCE = "vectors"


def spec(weights: str = "w1") -> EncoderSpec:
    """The spec of an encoder that only ever existed as vectors."""
    parts = ("vision", "image", "text", "itm")
    return EncoderSpec(
        family="external", checkpoint="vectors", weights=dict.fromkeys(parts, weights)
    )


def clustered(n: int, d: int, *, seed: int = 0, per_cluster: int = 50) -> NDArray[np.float32]:
    """(n, d) unit vectors around random centres, as embeddings of real pictures lie."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, n // per_cluster), d))
    vectors = centres[rng.integers(0, len(centres), n)] + 0.7 * rng.standard_normal((n, d))
    return unit(vectors)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """The vectors at length one."""
    made: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return made.astype(np.float32)


def key_of(name: str) -> str:
    """sha256 of the bytes an item of this name is said to have."""
    return hashlib.sha256(name.encode()).hexdigest()


def write_store(
    path: Path,
    images: NDArray[np.floating],
    captions: Sequence[NDArray[np.float32]] | None = None,
    *,
    weights: str = "w1",
    dtype: str = "float32",
    first: int = 0,
    splits: Sequence[str] | None = None,
) -> Store:
    """Add vectors to a store, made where there is none.

    Args:
        path: its directory.
        images: (n, d) or (n, q, d) feature `itc` of items `item-0`, `item-1`, …
        captions: for each item the (m, d) vectors of its captions, or None for no captions.
        weights: stands for the encoder.
        dtype: what features are kept in.
        first: number of the first item.
        splits: split of each item.
    """
    if images.ndim == 2:
        images = images[:, None, :]
    encoder = spec(weights)
    itc = partial(Feature, name="itc", dtype=dtype)
    looked, read = encoder.part("vision", "image"), encoder.part("text")
    features = {
        Modality.IMAGES: [itc(shape=images.shape[1:], fingerprint=looked)],
        Modality.CAPTIONS: [itc(shape=(1, images.shape[2]), fingerprint=read)],
    }
    with StoreWriter.open(path, spec=encoder, features=features) as writer:
        part = writer.part()
        names = [f"item-{first + i}" for i in range(len(images))]
        part.add(Modality.IMAGES, [key_of(name) for name in names], {"itc": images.astype(dtype)})
        items = []
        for i, name in enumerate(names):
            mine = np.empty((0, images.shape[2])) if captions is None else captions[i]
            sentences = tuple(
                Caption(id=f"{name}#{j}", text=f"{name} says {j}") for j in range(len(mine))
            )
            if len(mine):
                vectors = mine[:, None, :].astype(dtype)
                part.add(Modality.CAPTIONS, [c.key for c in sentences], {"itc": vectors})
            split = splits[i] if splits else ""
            item = Item(
                id=name, uri=f"/pictures/{name}.jpg", captions=sentences, split=split, meta={"n": i}
            )
            items.append((item, key_of(name)))
        part.add_items(SOURCE, items)
        part.commit()
    return open_store(path)
