"""Features out: models that turn images and captions into arrays."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import UsageError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.records import Feature, Modality

if TYPE_CHECKING:
    from retrieval_engine.models.matcher import Matcher

Arrays = dict[str, NDArray[Any]]


class Encoder(Protocol):
    """A model that emits features.

    Attributes:
        spec: all that decides its numbers.
        preprocessor: what turns a decoded picture into the pixels it reads; light, picklable,
            and meant for decode workers.
    """

    spec: EncoderSpec
    preprocessor: ImagePreprocessor

    @property
    def default_batch_size(self) -> int:
        """Images per call of `encode_images` that suit the device."""

    def features(self, modality: Modality) -> dict[str, Feature]:
        """The features it can emit for a modality, by name, with the dtype it computes them in."""

    def encode_images(self, pixels: NDArray[np.uint8], features: Sequence[str]) -> Arrays:
        """Features of a batch of images.

        Args:
            pixels: (n, s, s, 3) uint8 from `preprocessor.pixels`.
            features: names out of `features(Modality.IMAGES)`.

        Returns:
            By name: (n, *shape) arrays, e.g. `itc` (n, q, d) float32, L2-normalised rows.
        """

    def encode_texts(self, texts: Sequence[str], features: Sequence[str]) -> Arrays:
        """Features of captions or queries, cleaned and cut as the checkpoint's authors do.

        Args:
            texts: n sentences as people wrote them.
            features: names out of `features(Modality.CAPTIONS)`.

        Returns:
            By name: (n, *shape) arrays, e.g. `itc` (n, 1, d) float32, L2-normalised rows.
        """

    def matcher(self) -> "Matcher":
        """Scores of (image, text) pairs from stored `tokens`.

        Raises:
            UsageError: the checkpoint has no matching head.
        """


@runtime_checkable
class ReadsTokens(Protocol):
    """An encoder that can make its other image features from stored `tokens`."""

    def encode_tokens(self, tokens: NDArray[Any], features: Sequence[str]) -> Arrays:
        """Features of images whose vision states are known; no picture and no tower is needed.

        Args:
            tokens: (n, t, w) floats.
            features: names out of `features(Modality.IMAGES)`.
        """


def unknown_features(
    name: str, unknown: Sequence[str], known: Collection[str], modality: Modality, hint: str = ""
) -> UsageError:
    """The error of an encoder that was asked for features it does not emit.

    Args:
        name: of its checkpoint.
        unknown: what it was asked for and lacks.
        known: what it emits.
        modality: for what.
        hint: what to do instead.
    """
    return UsageError(
        f"{name} emits no {', '.join(unknown)} for {modality}; it has "
        f"{', '.join(known) or 'nothing of them'}",
        hint=hint,
    )
