"""Queries in, unit vectors out: from an encoder, or from the store for an image it knows."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.projected import ProjectedStore
from retrieval_engine.errors import DecodeError, FingerprintMismatch, ShapeError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.index import SavedIndex
from retrieval_engine.models import Encoder
from retrieval_engine.records import Modality
from retrieval_engine.search.pairing import check_head, open_query_encoder, through_head
from retrieval_engine.search.queries import Mix, Query, as_mix, combined, is_vector, is_words
from retrieval_engine.sources.decode import decode
from retrieval_engine.sources.image_forms import image_bytes
from retrieval_engine.store import Store


class QueryEncoder:
    """Turns queries into vectors of the space that images are compared in.

    Args:
        store: which may know an image already; None when an index alone is at hand.
        index: what is searched, where it is a saved one.
        spec: of the encoder that made the images' vectors.
        feature: name of those.
        dim: their length.
        device: for the encoder, see `open_encoder`.
        model: where the checkpoint of `spec` is now, if it has moved.

    Attributes:
        opened: the encoder as it is without a head, once it is open.
    """

    def __init__(
        self,
        store: Store | None,
        index: SavedIndex | None,
        spec: EncoderSpec,
        *,
        feature: str,
        dim: int,
        device: str,
        model: str,
    ) -> None:
        self.opened: Encoder | None = None
        self._store, self._index, self._spec, self._feature = store, index, spec, feature
        self._dim, self._device, self._model = dim, device, model
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        """The encoder of the store, opened when it is first asked for.

        Raises:
            FingerprintMismatch: the checkpoint is another one than the store was made with.
            UsageError: the store's vectors were imported.
            EncoderError: it cannot be loaded.
        """
        if self._encoder is None:
            self.accept(open_query_encoder(self._spec, device=self._device, model=self._model))
        assert self._encoder is not None
        return self._encoder

    def accept(self, encoder: Encoder) -> None:
        """Use an encoder that is open already.

        Raises:
            FingerprintMismatch: it is another one than the images' vectors are of.
            IndexFailure: its vectors pass through another head than those.
        """
        seen, expected = encoder.spec.fingerprint, self._spec.fingerprint
        if seen != expected:
            raise FingerprintMismatch(
                f"a query vector of {encoder.spec.checkpoint}", seen=seen, expected=expected
            )
        headed = through_head(encoder, self._store)
        check_head(headed, self._store, self._index, self._feature)
        self.opened, self._encoder = encoder, headed

    def vectors(self, query: Query) -> NDArray[np.float32]:
        """(v, d) float32 unit vectors of one query; v is 32 for an image of BLIP-2, else 1."""
        query = as_mix(query)
        if isinstance(query, Mix):
            parts = [(self.vectors(part), weight) for part, weight in query.parts]
            return combined(parts, str(query))
        if is_vector(query):
            return self._given(np.asarray(query))
        if is_words(query):
            # By itself: in a batch padding and the shape of products round otherwise.
            text = self.encoder.encode_texts([query], [self._feature])[self._feature]
            return np.asarray(text[0], np.float32)
        return self._image(query)

    def _given(self, vector: NDArray[Any]) -> NDArray[np.float32]:
        """(1, d) of a vector of the side of captions, of any length and not yet projected."""
        if vector.dtype.kind not in "fiu" or not np.isfinite(vector).all() or not vector.any():
            raise ShapeError("the query vector holds NaN, infinity or only zeros")
        if isinstance(self._store, ProjectedStore):
            return self._store.saved.head.project(Modality.CAPTIONS, vector[None])[:, 0]
        if len(vector) != self._dim:
            raise ShapeError(
                f"the query has {len(vector)} dimensions, the images {self._dim}",
                hint="give vectors of the encoder that the store was made with",
            )
        length = np.linalg.norm(vector.astype(np.float64))
        unit: NDArray[np.float32] = (vector / length).astype(np.float32)[None]
        return unit

    def _image(self, image: Any) -> NDArray[np.float32]:
        """(v, d) vectors of an image; from the store, when it knows these very bytes."""
        data = image_bytes(image)
        known = self._stored(data)
        if known is not None:
            return known
        try:
            look = self.encoder.preprocessor
            pixels = look.pixels(decode(data, least_side=look.least_side))
        except DecodeError as error:
            what = str(image) if isinstance(image, str | Path) else "the query image"
            raise DecodeError(f"{what}: {error.message}") from error
        features = self.encoder.encode_images(pixels[None], [self._feature])
        vectors: NDArray[np.float32] = features[self._feature][0].astype(np.float32)
        return vectors

    def _stored(self, data: bytes) -> NDArray[np.float32] | None:
        if self._store is None:
            return None
        key = hashlib.sha256(data).hexdigest()
        rows = self._store.rows(Modality.IMAGES, [key], self._feature)
        if rows[0] < 0:
            return None
        vectors: NDArray[np.float32] = self._store.read(Modality.IMAGES, self._feature, rows)[0]
        return vectors.astype(np.float32)
