"""The text side of a checkpoint alone, for questions in words.

A search reads one sentence. Building the whole model for it means importing transformers, which
takes longer than everything else together. A family whose text tower is short enough has in its
`__init__.py`

    def open_text_tower(checkpoint: Checkpoint, spec: EncoderSpec, *, device: str) -> TextTower | None

which answers None whenever it is not certain to give the very numbers of the family's encoder;
then that one is opened, and says what is wrong if something is.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models import Arrays, Encoder, open_checkpoint, recorded_checkpoint
from retrieval_engine.models.family import load_family
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.records import Feature, Modality

if TYPE_CHECKING:
    from retrieval_engine.models.matcher import Matcher


class TextTower(Protocol):
    """What of an `Encoder` needs no vision tower; attributes and methods as there."""

    spec: EncoderSpec
    preprocessor: ImagePreprocessor

    @property
    def default_batch_size(self) -> int:
        """Images per call of `encode_images` that suit the device."""

    def features(self, modality: Modality) -> dict[str, Feature]:
        """See `Encoder.features`; those of images too."""

    def encode_texts(self, texts: Sequence[str], features: Sequence[str]) -> Arrays:
        """See `Encoder.encode_texts`; equal to it bit by bit."""


class TextTowerFirst:
    """An encoder whose text side is open; the whole model is built when images come.

    Args:
        tower: the text side.
        whole: opens the encoder that it belongs to.
    """

    def __init__(self, tower: TextTower, whole: Callable[[], Encoder]) -> None:
        self.spec = tower.spec
        self.preprocessor = tower.preprocessor
        self.default_batch_size = tower.default_batch_size
        self.features = tower.features
        self.encode_texts = tower.encode_texts
        self._open = whole

    @cached_property
    def _whole(self) -> Encoder:
        return self._open()

    def encode_images(self, pixels: NDArray[np.uint8], features: Sequence[str]) -> Arrays:
        """See `Encoder`."""
        return self._whole.encode_images(pixels, features)

    def matcher(self) -> "Matcher":
        """See `Encoder`."""
        return self._whole.matcher()


def reopen_for_texts(spec: EncoderSpec, *, device: str = "auto", model: str = "") -> Encoder:
    """The encoder that a store or an index was made with, ready for sentences soon.

    Args:
        spec: as it was recorded.
        device: where it shall run.
        model: where the checkpoint is now, if it has moved; the caller checks the fingerprint.

    Raises:
        EncoderError: it cannot be loaded.
    """
    found = recorded_checkpoint(spec, model)

    def whole() -> Encoder:
        return open_checkpoint(found, device=device, dtype=spec.dtype, family=spec.family)

    open_tower = getattr(load_family(spec.family), "open_text_tower", None)
    if found.adapter is None and open_tower is not None:
        tower: TextTower | None = open_tower(found, spec, device=device)
        if tower is not None:
            return TextTowerFirst(tower, whole)
    return whole()
