"""The text side of a checkpoint alone, for questions in words.

A search reads one sentence. Building the whole model for it means importing transformers, which
takes longer than everything else together. A family whose text tower is short enough has in its
`__init__.py`

    def open_text_tower(checkpoint: Checkpoint, spec: EncoderSpec, *, device: str) -> TextTower | None

which answers None whenever it is not certain to compute what the family's encoder does; then that
one is opened, and says what is wrong if something is. Its sentences may be of float32 where the
encoder rounds to half precision: questions are kept nowhere, and the finer number is the better.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.machine import has_cuda_driver, has_fast_bfloat16
from retrieval_engine.models import Arrays, Encoder, open_checkpoint, recorded_checkpoint
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.checkpoint import Checkpoint
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
        """See `Encoder.encode_texts`; equal to it but for rounding."""


class EncoderToCome:
    """An encoder that is known already and built when the first picture or caption comes.

    Args:
        known: the text side, which says what the encoder is.
        whole: opens the encoder that it belongs to.
    """

    def __init__(self, known: TextTower, whole: Callable[[], Encoder]) -> None:
        self.spec = known.spec
        self.preprocessor = known.preprocessor
        self.default_batch_size = known.default_batch_size
        self.features = known.features
        self._open = whole

    @cached_property
    def _whole(self) -> Encoder:
        return self._open()

    @property
    def batches_at_once(self) -> int:
        """See `ImageEncoder`."""
        return int(getattr(self._whole, "batches_at_once", 1))

    @property
    def encode_images(self) -> Callable[[NDArray[np.uint8], Sequence[str]], Arrays]:
        """See `Encoder`."""
        return self._whole.encode_images

    @property
    def encode_texts(self) -> Callable[[Sequence[str], Sequence[str]], Arrays]:
        """See `Encoder`."""
        return self._whole.encode_texts

    def matcher(self) -> "Matcher":
        """See `Encoder`."""
        return self._whole.matcher()


class TextTowerFirst(EncoderToCome):
    """An encoder whose text side is open; the whole model is built when images come.

    Args:
        tower: the text side.
        whole: opens the encoder that it belongs to.
    """

    def __init__(self, tower: TextTower, whole: Callable[[], Encoder]) -> None:
        super().__init__(tower, whole)
        self._tower = tower

    @property
    def encode_texts(self) -> Callable[[Sequence[str], Sequence[str]], Arrays]:
        """See `TextTower`."""
        return self._tower.encode_texts


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
    whole = partial(open_checkpoint, found, device=device, dtype=spec.dtype, family=spec.family)
    tower = _tower_of(found, spec, device)
    return whole() if tower is None else TextTowerFirst(tower, whole)


def open_when_needed(
    spec: EncoderSpec, *, checkpoint: str, device: str, dtype: str, fast_decode: bool
) -> EncoderToCome | None:
    """The encoder that a store was made with, built only if a picture or a caption is new.

    Args:
        spec: as it was recorded.
        checkpoint: as `open_encoder` takes it.
        device: the same.
        dtype: the same.
        fast_decode: the same.

    Returns:
        None where it is not certain, without importing torch, that `open_encoder` would give the
        very encoder of `spec` for these arguments.

    Raises:
        EncoderError: there is no such checkpoint.
    """
    on_cpu = device == "cpu" or (device == "auto" and not has_cuda_driver())
    auto = {True: "bfloat16", False: "float32", None: ""}[has_fast_bfloat16()]
    if not on_cpu or spec.dtype != (auto if dtype == "auto" else dtype):
        return None
    found = replace(resolve(checkpoint), fast_decode=fast_decode)
    tower = _tower_of(found, spec, device)
    whole = partial(open_checkpoint, found, device=device, dtype=dtype, family="auto")
    return None if tower is None else EncoderToCome(tower, whole)


def _tower_of(found: Checkpoint, spec: EncoderSpec, device: str) -> TextTower | None:
    """The text side, where the family has one that is certain to be that of the spec."""
    open_tower = getattr(load_family(spec.family), "open_text_tower", None)
    if found.adapter is not None or open_tower is None:
        return None
    tower: TextTower | None = open_tower(found, spec, device=device)
    return tower
