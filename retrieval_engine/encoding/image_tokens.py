"""Vision states of images: read from the store where it has them, encoded once where not.

Matching, captioning and training start from these. A gallery of a hundred million images does not
keep a megabyte for each; then only the images that somebody asks for are encoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.device import Facts
from retrieval_engine.errors import DecodeError
from retrieval_engine.models import Encoder
from retrieval_engine.models.captioner import Captioner
from retrieval_engine.records import Modality
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Store

FEATURE = "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Images as a model is to see them, which can travel to where it is.

    Attributes:
        is_stored: (n,) bool, whether there are states of each.
        states: (k, t, w) those, in the store's dtype; None where there are none.
        pixels: (n - k, s, s, 3) uint8 of the others; None where there are none.
    """

    is_stored: NDArray[np.bool_]
    states: NDArray[Any] | None
    pixels: NDArray[np.uint8] | None

    def part(self, some: slice) -> "Seen":
        """The same of some of the images."""
        before, kept = int(self.is_stored[: some.start].sum()), self.is_stored[some]
        first, count = some.start - before, int(kept.sum())
        return Seen(
            is_stored=kept,
            states=None if self.states is None else self.states[before : before + count],
            pixels=None if self.pixels is None else self.pixels[first : first + len(kept) - count],
        )

    def states_by(self, model: Encoder | Captioner) -> NDArray[Any]:
        """(n, t, w) vision states, in the store's dtype, or float32 when any had to be encoded."""
        if self.pixels is None or not len(self.pixels):
            assert self.states is not None
            return np.require(self.states, requirements="W")  # what travelled may be read-only
        size, pixels = model.default_batch_size, self.pixels
        batches = (pixels[start : start + size] for start in range(0, len(pixels), size))
        fresh = np.concatenate([model.encode_images(b, [FEATURE])[FEATURE] for b in batches])
        states = np.empty((len(self.is_stored), *fresh.shape[1:]), dtype=np.float32)
        states[~self.is_stored] = fresh
        if self.states is not None:
            states[self.is_stored] = self.states
        return states


class VisionStates:
    """(n, t, w) vision states for one model: out of the store where it holds them, else encoded.

    Args:
        model: what is to read them; its `Facts` will do to gather them for it.
        store: used when its `tokens` were made by the same tower in the same arithmetic.

    Attributes:
        store: the store when it is used, else None.
        fingerprint: of the states.
        encoded: number of images that had to be encoded.
    """

    def __init__(self, model: Encoder | Captioner | Facts, store: Store | None) -> None:
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
        assert not isinstance(self._model, Facts)
        return self.gathered(rows, pixels).states_by(self._model)

    def gathered(self, rows: NDArray[np.int64], pixels: Sequence[NDArray[np.uint8] | None]) -> Seen:
        """What `read` makes states of; no model is needed for it."""
        stored, fresh = np.array([p is None for p in pixels]), [p for p in pixels if p is not None]
        self.encoded += len(fresh)
        states = None
        if self.store is not None and stored.any():
            states = self.store.read(Modality.IMAGES, FEATURE, rows[stored])
        pixels_of = np.stack(fresh) if fresh else None
        return Seen(is_stored=stored, states=states, pixels=pixels_of)


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
        encoder: Encoder | Facts,
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
        return self._states.read(self._rows[numbers], self._unstored(numbers))

    def gathered(self, numbers: NDArray[np.int64]) -> Seen:
        """What calling it makes states of; no model is needed for it."""
        return self._states.gathered(self._rows[numbers], self._unstored(numbers))

    def _unstored(self, numbers: NDArray[np.int64]) -> list[NDArray[np.uint8] | None]:
        return [None if self._stored[i] else self._pixels(self._uris[i]) for i in numbers]

    def _pixels(self, uri: str) -> NDArray[np.uint8]:
        try:
            look = self._states.preprocessor
            return look.pixels(decode(read_bytes(uri), least_side=look.least_side))
        except DecodeError as error:
            raise DecodeError(f"{uri}: {error.message}", hint=error.hint) from error
