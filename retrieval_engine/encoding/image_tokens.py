"""Vision states of images: read from the store where it has them, encoded once where not.

Matching, captioning and training start from these. A gallery of a hundred million images does not
keep a megabyte for each; then only the images that somebody asks for are encoded.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import DecodeError
from retrieval_engine.models import Encoder
from retrieval_engine.records import Modality
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Store

FEATURE = "tokens"


class ImageTokens:
    """Gives the (n, t, w) states of images by their numbers.

    Args:
        store: where stored states are; None when all are to be encoded.
        rows: (n,) int64 rows of the images in the store, -1 for one it does not know.
        uris: (n,) where the images' bytes are.
        encoder: for the images whose states are not stored.

    Attributes:
        encoded: number of images that had to be encoded.
    """

    def __init__(
        self,
        store: Store | None,
        rows: NDArray[np.int64],
        uris: Sequence[str],
        encoder: Encoder,
    ) -> None:
        self._store = store
        self._rows = rows
        self._uris = uris
        self._encoder = encoder
        self._stored = np.zeros(len(rows), dtype=bool)
        if store is not None and FEATURE in store.features(Modality.IMAGES):
            self._stored = store.having(Modality.IMAGES, FEATURE, rows)
        self.encoded = 0

    @property
    def missing(self) -> int:
        """Number of images whose states are not stored."""
        return int((~self._stored).sum())

    def __call__(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """States of some images.

        Args:
            numbers: (i,) positions in `rows` and `uris`.

        Returns:
            (i, t, w) in the store's dtype, or float32 when any had to be encoded.

        Raises:
            DecodeError: an image that is not stored can no longer be read as a picture.
        """
        stored = self._stored[numbers]
        if self._store is not None and stored.all():
            return self._store.read(Modality.IMAGES, FEATURE, self._rows[numbers])
        form = self._encoder.features(Modality.IMAGES)[FEATURE]
        states = np.empty((len(numbers), *form.shape), dtype=np.float32)
        if self._store is not None and stored.any():
            rows = self._rows[numbers[stored]]
            states[stored] = self._store.read(Modality.IMAGES, FEATURE, rows)
        states[~stored] = self._encode(numbers[~stored])
        return states

    def _encode(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        pixels = np.stack([self._pixels(self._uris[number]) for number in numbers.tolist()])
        size = self._encoder.default_batch_size
        batches = [
            self._encoder.encode_images(pixels[start : start + size], [FEATURE])[FEATURE]
            for start in range(0, len(pixels), size)
        ]
        self.encoded += len(numbers)
        return np.concatenate(batches)

    def _pixels(self, uri: str) -> NDArray[np.uint8]:
        try:
            look = self._encoder.preprocessor
            return look.pixels(decode(read_bytes(uri), least_side=look.least_side))
        except DecodeError as error:
            raise DecodeError(f"{uri}: {error.message}", hint=error.hint) from error
