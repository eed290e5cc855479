"""What a decode worker does with an item: read it, hash it, and decode it where it is new."""

import hashlib
import time
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.records import ImageFacts, Item
from retrieval_engine.sources import read_item
from retrieval_engine.sources.decode import decode_photo, facts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An item as the model needs it.

    Attributes:
        key: sha256 of its bytes.
        facts: what its file says about itself.
        pixels: (s, s, 3), or None where the store has the features already.
        read_seconds: that reading and hashing took.
        decode_seconds: that decoding and resizing took.
    """

    key: str
    facts: ImageFacts
    pixels: NDArray[np.uint8] | None
    read_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class Load:
    """The work; it carries all it needs and no model."""

    preprocessor: ImagePreprocessor
    known: Container[str]

    def __call__(self, item: Item) -> Loaded:
        """An item, looked at only as far as needed."""
        start = time.perf_counter()
        data = read_item(item)
        key = hashlib.sha256(data).hexdigest()
        read, pixels = time.perf_counter(), None
        if key in self.known:
            facts = facts_of(data)
        else:
            image, facts = decode_photo(data, least_side=self.preprocessor.least_side)
            pixels = self.preprocessor.pixels(image)
        return Loaded(
            key=key,
            facts=facts,
            pixels=pixels,
            read_seconds=read - start,
            decode_seconds=time.perf_counter() - read,
        )
