"""The vectors to be indexed, read from a store block by block."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import FeatureMissing, NoImages
from retrieval_engine.index.exact import ExactIndex
from retrieval_engine.records import Feature, Modality
from retrieval_engine.store import Gallery, Store

_BLOCK_BYTES = 1 << 26


class StoredVectors:
    """The image vectors of a gallery; row r belongs to item r // per_item.

    Args:
        gallery: the items.
        feature: their feature, of shape (vectors per item, dim).
    """

    def __init__(self, gallery: Gallery, feature: Feature) -> None:
        self.gallery = gallery
        self.feature = feature
        self.per_item, self.dim = feature.shape
        self.items = len(gallery.image_rows)
        self.rows = self.items * self.per_item

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """(b, dim) float32 blocks of all rows, in order; a store holds no NaN."""
        size = max(1, _BLOCK_BYTES // (4 * self.per_item * self.dim))
        for _, block in self.gallery.image_blocks(self.feature.name, size):
            yield np.ascontiguousarray(block.reshape(-1, self.dim), dtype=np.float32)

    def sample(self, size: int, seed: int) -> NDArray[np.float32]:
        """At most `size` random rows, (s, dim), gathered in one pass over the blocks."""
        rng = np.random.default_rng(seed)
        picked = np.sort(rng.choice(self.rows, size=min(size, self.rows), replace=False))
        parts, start = [], 0
        for block in self.blocks():
            first, last = np.searchsorted(picked, [start, start + len(block)])
            parts.append(block[picked[first:last] - start])
            start += len(block)
        return np.concatenate(parts)

    def exact(self, device: str = "cpu") -> ExactIndex:
        """Exact search over the same vectors, which reads them at each call; see `ExactIndex`."""
        blocks = partial(self.gallery.image_blocks, self.feature.name)
        return ExactIndex.streaming(blocks, self.items, self.feature.shape, device)


def image_vectors(store: Store, feature: str, split: str | None) -> StoredVectors:
    """The image vectors of a store.

    Raises:
        FeatureMissing: the store lacks the feature, or it is no list of vectors.
        NoImages: there is none, in this split.
    """
    known = store.features(Modality.IMAGES)
    if feature not in known:
        raise FeatureMissing(
            f"{store.path} holds no image feature {feature!r}; it holds: {', '.join(known)}",
            hint=f"add it with `EncodeOptions(features=({feature!r},))`",
        )
    form = known[feature]
    if len(form.shape) != 2:
        raise FeatureMissing(
            f"image feature {feature!r} has shape {form.shape}; (vectors, dim) is needed",
            hint="use `feature='itc'`",
        )
    vectors = StoredVectors(store.gallery(split), form)
    if not vectors.items:
        which = f"split {split!r} of {store.path}" if split else f"{store.path}"
        raise NoImages(f"{which} holds no images", hint="encode some with `encode(source)`")
    return vectors
