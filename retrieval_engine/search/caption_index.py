"""The captions of a store, searched exactly."""

from collections.abc import Collection, Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import FeatureMissing
from retrieval_engine.index import ExactIndex
from retrieval_engine.index.catalog import GalleryCatalog
from retrieval_engine.index.exact import Block
from retrieval_engine.index.grouping import merge_queries
from retrieval_engine.records import Caption, Modality
from retrieval_engine.search.hits import Hit, hit_of
from retrieval_engine.store import Gallery
from retrieval_engine.store.filters import ItemFilter


class CaptionIndex:
    """The captions of a gallery that have features, searched exactly.

    Args:
        gallery: whose captions.
        feature: name of it.
        sources: only the captions of images of these sources, by name; none for all.

    Raises:
        FeatureMissing: there are none.
    """

    def __init__(self, gallery: Gallery, feature: str, sources: Collection[str] = ()) -> None:
        self._gallery = gallery
        self._items = GalleryCatalog(gallery)
        self._within = self._items.of_sources(sources) if sources else None
        wanted = gallery.caption_rows >= 0
        if self._within is not None:
            wanted &= self._within[gallery.caption_image]
        self._numbers = np.flatnonzero(wanted)
        store = gallery.store
        forms = store.features(Modality.CAPTIONS)
        if feature not in forms or not len(self._numbers):
            raise FeatureMissing(
                f"{store.path} holds no {feature} of captions",
                hint="encode a source that has captions",
            )
        rows = gallery.caption_rows[self._numbers]

        def blocks(size: int) -> Iterator[Block]:
            for start in range(0, len(rows), size):
                yield start, store.read(Modality.CAPTIONS, feature, rows[start : start + size])

        self._index = ExactIndex.streaming(blocks, len(rows), forms[feature].shape)

    @cached_property
    def filter(self) -> ItemFilter:
        """Filters over the images whose captions they are."""
        return ItemFilter(self._items.table(), self._within)

    def search(self, vectors: NDArray[np.float32], k: int, where: str = "") -> list[Hit]:
        """The k best captions of one query.

        Args:
            vectors: (v, d) float32 of it.
            k: at least 1.
            where: only captions of images that satisfy this filter; empty for all.
        """
        allowed = None
        if where:
            allowed = self.filter.mask(where)[self._gallery.caption_image[self._numbers]]
        most = min(k, self._index.items)
        scores, numbers = merge_queries(*self._index.search(vectors, most, allowed), most)
        return [
            self._hit(rank, score, number)
            for rank, (score, number) in enumerate(zip(scores, numbers, strict=True), start=1)
        ]

    def _hit(self, rank: int, score: float, number: int) -> Hit:
        at = int(self._numbers[number])
        caption = Caption(id=self._gallery.caption_ids[at], text=self._gallery.caption_texts[at])
        entry = self._items.entries([int(self._gallery.caption_image[at])])[0]
        return hit_of(rank, score, entry, caption)
