"""The text side of a checkpoint alone, for questions in words.

A search reads one sentence. Building the whole model for it means importing transformers, which
takes longer than everything else together. A family whose text side is short enough has a file
here with

    def open_words(checkpoint: Checkpoint, spec: EncoderSpec, *, device: str) -> Words | None

which answers None whenever it is not certain to give the very numbers of the family's encoder;
then that one is opened, and says what is wrong if something is.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval_engine import plugins
from retrieval_engine.encoders import Arrays, Encoder, open_checkpoint, recorded_name
from retrieval_engine.encoders.checkpoint import resolve
from retrieval_engine.encoders.preprocess import ImagePreprocessor
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.records import Feature, Modality

if TYPE_CHECKING:
    from retrieval_engine.encoders.matching import Matcher

WORDS = "retrieval_engine.encoders.words"


class Words(Protocol):
    """What of an `Encoder` needs no vision tower; attributes and methods as there."""

    spec: EncoderSpec
    preprocessor: ImagePreprocessor
    default_batch_size: int

    def features(self, modality: Modality) -> dict[str, Feature]:
        """See `Encoder.features`; those of images too."""

    def encode_texts(self, texts: Sequence[str], features: Sequence[str]) -> Arrays:
        """See `Encoder.encode_texts`; equal to it bit by bit."""


class WordsFirst:
    """An encoder whose text side is open; the whole model is built when pictures come.

    Args:
        words: the text side.
        whole: opens the encoder that it belongs to.
    """

    def __init__(self, words: Words, whole: Callable[[], Encoder]) -> None:
        self.spec = words.spec
        self.preprocessor = words.preprocessor
        self.default_batch_size = words.default_batch_size
        self.features = words.features
        self.encode_texts = words.encode_texts
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


def reopen_for_words(spec: EncoderSpec, *, device: str = "auto", model: str = "") -> Encoder:
    """The encoder that a store or an index was made with, ready for sentences soon.

    Args:
        spec: as it was recorded.
        device: where it shall run.
        model: where the checkpoint is now, if it has moved; the caller checks the fingerprint.

    Raises:
        EncoderError: it cannot be loaded.
    """
    found = resolve(recorded_name(spec, model))

    def whole() -> Encoder:
        return open_checkpoint(found, device=device, dtype=spec.dtype, family=spec.family)

    if found.adapter is None and spec.family in plugins.names(WORDS):
        family = plugins.load(WORDS, spec.family, noun="encoder family")
        words: Words | None = family.open_words(found, spec, device=device)
        if words is not None:
            return WordsFirst(words, whole)
    return whole()
