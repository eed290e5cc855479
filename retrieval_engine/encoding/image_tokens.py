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
from retrieval_engine.models.captioner import Captioner
from retrieval_engine.records import Modality
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Store

FEATURE = "tokens"


class VisionStates:
    """(n, t, w) vision states for one model: out of the store where it holds them, else encoded.

    Args:
        model: what is to read them.
        store: used when its `tokens` were made by the same tower in the same arithmetic.

    Attributes:
        store: the store when it is used, else None.
        fingerprint: of the states.
        encoded: number of images that had to be encoded.
    """

    def __init__(self, model: Encoder | Captioner, store: Store | None) -> None:
        self._model = model
        self.preprocessor = model.preprocessor
        self.fingerprint = model.features(Modality.IMAGES)[FEATURE].fingerprint
        stored = store.features(Modality.IMAGES).get(FEATURE) if store else None
        fits = stored is not None and stored.fingerprint == self.fingerprint
        self.store = store if fits else None
        self.encoded = 0

    def read(
        self, rows: NDArray[np.int64], pixels: Sequence[NDArray[np.uint8] | None]
    ) -> NDArray[Any]:
        """Vision states of a batch of images.

        Args:
            rows: (n,) rows in the store.
            pixels: (n,) what the model reads, or None where the row has the states.

        Returns:
            (n, t, w) in the store's dtype, or float32 when any had to be encoded.
        """
        stored = np.array([p is None for p in pixels])
        if self.store is not None and stored.all():
            return self.store.read(Modality.IMAGES, FEATURE, rows)
        fresh = self._encode([p for p in pixels if p is not None])
        states = np.empty((len(rows), *fresh.shape[1:]), dtype=np.float32)
        states[~stored] = fresh
        if self.store is not None and stored.any():
            states[stored] = self.store.read(Modality.IMAGES, FEATURE, rows[stored])
        return states

    def _encode(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
        size = self._model.default_batch_size
        self.encoded += len(pixels)
        batches = (np.stack(pixels[start : start + size]) for start in range(0, len(pixels), size))
        return np.concatenate([self._model.encode_images(b, [FEATURE])[FEATURE] for b in batches])


class ImageTokens:
    """Gives the (n, t, w) states of images by their numbers.

    Args:
        store: where stored states are; None when all are to be encoded.
        rows: (n,) int64 rows of the images in the store, -1 for one it does not know.
        uris: (n,) where the images' bytes are.
        encoder: for the images whose states are not stored.
    """

    def __init__(
        self,
        store: Store | None,
        rows: NDArray[np.int64],
        uris: Sequence[str],
        encoder: Encoder,
    ) -> None:
        self._states = VisionStates(encoder, store)
        self._rows, self._uris = rows, uris
        used = self._states.store
        none = np.zeros(len(rows), dtype=bool)
        self._stored = used.having(Modality.IMAGES, FEATURE, rows) if used else none

    @property
    def encoded(self) -> int:
        """Number of images that had to be encoded."""
        return self._states.encoded

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
        pixels = [None if self._stored[i] else self._pixels(self._uris[i]) for i in numbers]
        return self._states.read(self._rows[numbers], pixels)

    def _pixels(self, uri: str) -> NDArray[np.uint8]:
        try:
            look = self._states.preprocessor
            return look.pixels(decode(read_bytes(uri), least_side=look.least_side))
        except DecodeError as error:
            raise DecodeError(f"{uri}: {error.message}", hint=error.hint) from error
