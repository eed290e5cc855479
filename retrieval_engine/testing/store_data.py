"""Items, captions and features for tests of the store, with the arrays they must come back as."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.records import Caption, Failure, Feature, ImageFacts, Item, Modality
from retrieval_engine.store import StoreWriter

SOURCE = "folder:/pictures"
SPEC = EncoderSpec(
    family="external", checkpoint="tests", weights={"vision": "v", "image": "i", "text": "t"}
)
RETRAINED = replace(SPEC, weights={"vision": "v", "image": "i", "text": "t2"})
"""The same encoder with another text tower: image features stay, caption features do not."""

IMAGE_FEATURES = (
    Feature(name="itc", shape=(2, 8), dtype="float16", fingerprint="image-1"),
    Feature(name="pooled", shape=(6,), dtype="float32", fingerprint="image-2"),
)
CAPTION_FEATURES = (
    Feature(name="itc", shape=(1, 8), dtype="float16", fingerprint="text-1"),
    Feature(name="token_ids", shape=(5,), dtype="int32", fingerprint="text-2"),
    Feature(name="token_mask", shape=(5,), dtype="uint8", fingerprint="text-2"),
)
RETRAINED_CAPTION_FEATURES = tuple(
    replace(feature, fingerprint=f"{feature.fingerprint}-retrained") for feature in CAPTION_FEATURES
)
FEATURES = {Modality.IMAGES: IMAGE_FEATURES, Modality.CAPTIONS: CAPTION_FEATURES}

ITC = Feature(name="itc", shape=(1, 4), dtype="float16", fingerprint="f")
ONLY_ITC = {Modality.IMAGES: [ITC]}
KEYS = [f"{i:064x}" for i in range(16)]


def values(feature: Feature, key: str, version: int = 0) -> NDArray[Any]:
    """One row of a feature; the same for the same key, whoever asks."""
    seed = hashlib.sha256(f"{feature.name} {feature.fingerprint} {key} {version}".encode())
    rng = np.random.default_rng(int.from_bytes(seed.digest()[:8]))
    if np.dtype(feature.dtype).kind == "f":
        return rng.standard_normal(feature.shape).astype(feature.dtype)
    return rng.integers(0, 200, feature.shape).astype(feature.dtype)


def rows(
    features: Iterable[Feature], keys: Sequence[str], version: int = 0
) -> dict[str, NDArray[Any]]:
    """(n, *shape) of each feature."""
    return {
        f.name: np.stack([values(f, key, version) for key in keys])
        if len(keys)
        else np.empty((0, *f.shape), f.dtype)
        for f in features
    }


def key_of(item: Item) -> str:
    """Key of an item's picture, which stands in its uri here."""
    return hashlib.sha256(item.uri.encode()).hexdigest()


def caption_keys(items: Iterable[Item]) -> list[str]:
    """Distinct keys of all captions, in order."""
    return list(dict.fromkeys(caption.key for item in items for caption in item.captions))


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnImages:
    """A made-up source.

    Attributes:
        items: in its order.
    """

    items: tuple[Item, ...]

    @property
    def keys(self) -> list[str]:
        """Of the images."""
        return [key_of(item) for item in self.items]

    @property
    def captions(self) -> list[Caption]:
        """Those of all items, in order."""
        return [caption for item in self.items for caption in item.captions]


def pictures(count: int, *, start: int = 0, meta: Mapping[str, int] | None = None) -> DrawnImages:
    """Items with 0 to 3 captions, a few of them equal between items, and three splits."""
    return DrawnImages(
        items=tuple(
            Item(
                id=f"{i}.jpg",
                uri=f"/pictures/{i}.jpg",
                captions=tuple(
                    Caption(id=f"{i}.jpg#{j}", text=f"a dög {i // 2} {j}") for j in range(i % 4)
                ),
                split=("train", "val", "test")[i % 3],
                size_bytes=1000 + i,
                mtime_ns=10**18 + i,
                meta={"number": i, **(meta or {})},
                facts=ImageFacts(
                    taken=datetime(2023, 5, 1 + i % 28, 12) if i % 2 else None,
                    camera="iPhone 12" if i % 3 else None,
                    latitude=52.5 - i / 100,
                    width=640,
                ),
            )
            for i in range(start, start + count)
        )
    )


def add(
    writer: StoreWriter,
    items: Sequence[Item],
    *,
    source: str = SOURCE,
    version: int = 0,
    block: int = 3,
) -> None:
    """Commit items and what they need as one part, rows arriving a few at a time."""
    part = writer.part()
    keys = list(dict.fromkeys(key_of(item) for item in items))
    for start in range(0, len(keys), block):
        some = keys[start : start + block]
        part.add(Modality.IMAGES, some, rows(writer.features[Modality.IMAGES], some, version))
    if writer.features[Modality.CAPTIONS]:
        texts = caption_keys(items)
        part.add(Modality.CAPTIONS, texts, rows(writer.features[Modality.CAPTIONS], texts, version))
    part.add_items(source, [(item, key_of(item)) for item in items])
    part.commit()


def write(path: Path, items: Sequence[Item], *, part_items: int = 10**6) -> None:
    """A whole store of these items."""
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        for start in range(0, len(items), part_items):
            add(writer, items[start : start + part_items])


def failure(item_id: str, reason: str = "truncated") -> Failure:
    """An entry of the ledger."""
    return Failure(source=SOURCE, item_id=item_id, uri=f"/pictures/{item_id}", reason=reason)
