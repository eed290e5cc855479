"""An encoder seen through a head: its `itc` is what the head makes of its features."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import FeatureMissing
from retrieval_engine.heads.saved import SavedHead
from retrieval_engine.models import Arrays, Encoder
from retrieval_engine.models.encoder import unknown_features
from retrieval_engine.records import Feature, Modality

if TYPE_CHECKING:
    from retrieval_engine.models.matcher import Matcher


ITC = "itc"


class HeadedEncoder:
    """Wraps an encoder; all but its `itc` is as it was.

    Args:
        encoder: what the head was trained on.
        saved: the head.

    Raises:
        FingerprintMismatch: the head belongs to another encoder.
        FeatureMissing: the encoder does not emit what the head reads.
    """

    def __init__(self, encoder: Encoder, saved: SavedHead) -> None:
        features = {m: encoder.features(m) for m in Modality}
        saved.check(features, encoder.spec.fingerprint)
        name = saved.config.feature
        if any(name not in features[m] for m in Modality):
            raise FeatureMissing(f"{encoder.spec.checkpoint} emits no {name}, which the head reads")
        self.saved = saved
        self.spec = encoder.spec
        self.preprocessor = encoder.preprocessor
        self.default_batch_size = encoder.default_batch_size
        self.batches_at_once = int(getattr(encoder, "batches_at_once", 1))
        self._encoder = encoder

    def features(self, modality: Modality) -> dict[str, Feature]:
        """Those of the encoder, with the head's in place of `itc`."""
        known = self._encoder.features(modality)
        form = known[self.saved.config.feature]
        vectors = form.shape[0] if len(form.shape) == 2 else 1
        return {**known, ITC: replace(self.saved.emits(modality, vectors, "float32"), name=ITC)}

    def encode_images(self, pixels: NDArray[np.uint8], features: Sequence[str]) -> Arrays:
        """See `Encoder`."""
        arrays = self._encoder.encode_images(pixels, self._needed(features, Modality.IMAGES))
        return self._projected(Modality.IMAGES, arrays, features)

    def encode_texts(self, texts: Sequence[str], features: Sequence[str]) -> Arrays:
        """See `Encoder`."""
        arrays = self._encoder.encode_texts(texts, self._needed(features, Modality.CAPTIONS))
        return self._projected(Modality.CAPTIONS, arrays, features)

    def matcher(self) -> "Matcher":
        """The encoder's own: pair scores do not pass through a head."""
        return self._encoder.matcher()

    def _needed(self, features: Sequence[str], modality: Modality) -> list[str]:
        """What the encoder itself must give.

        Raises:
            UsageError: a feature is not emitted; the message lists those that are.
        """
        known = self.features(modality)
        if unknown := [name for name in features if name not in known]:
            raise unknown_features(self.spec.checkpoint, unknown, known, modality)
        return list(dict.fromkeys(self.saved.config.feature if n == ITC else n for n in features))

    def _projected(self, modality: Modality, arrays: Arrays, features: Sequence[str]) -> Arrays:
        found = {name: arrays[name] for name in features if name != ITC}
        if ITC in features:
            states = arrays[self.saved.config.feature]
            found[ITC] = self.saved.head.project(modality, states)
        return found
