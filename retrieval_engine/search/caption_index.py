"""The captions of a store, searched exactly."""

from collections.abc import Collection, Iterator

import numpy as np

from retrieval_engine.errors import FeatureMissing
from retrieval_engine.index import ExactIndex
from retrieval_engine.index.catalog import GalleryCatalog
from retrieval_engine.index.exact import Block
from retrieval_engine.records import Caption, Modality
from retrieval_engine.search.hits import Hit, hit_of
from retrieval_engine.store import Gallery


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
        wanted = gallery.caption_rows >= 0
        if sources:
            wanted &= self._items.of_sources(sources)[gallery.caption_image]
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

        self.index = ExactIndex.streaming(blocks, len(rows), forms[feature].shape)

    def hit(self, rank: int, score: float, number: int) -> Hit:
        """The hit for a caption, by its number among those that have features."""
        at = int(self._numbers[number])
        caption = Caption(id=self._gallery.caption_ids[at], text=self._gallery.caption_texts[at])
        entry = self._items.entries([int(self._gallery.caption_image[at])])[0]
        return hit_of(rank, score, entry, caption)
