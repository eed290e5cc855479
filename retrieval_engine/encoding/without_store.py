"""Features of whatever a program holds, images or sentences, without a store."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import DecodeError, UsageError
from retrieval_engine.models import Encoder
from retrieval_engine.models.encoder import unknown_features
from retrieval_engine.models.lanes import in_lanes
from retrieval_engine.records import Modality
from retrieval_engine.sources.decode import decode
from retrieval_engine.sources.from_python import given_images
from retrieval_engine.sources.image_forms import image_bytes, is_image


def encode_given(encoder: Encoder, inputs: Any, feature: str = "itc") -> NDArray[np.float32]:
    """A feature of images or of sentences.

    Args:
        encoder: see `Encoder`.
        inputs: sentences, or images in any form that `given_images` takes; one or several.
        feature: name of it.

    Returns:
        (n, d) float32, n being 1 for a single input; (n, v, d) where each has several vectors.

    Raises:
        UsageError: sentences and images at once, nothing at all, or an unknown feature.
        DecodeError: an image cannot be decoded; the message has its number.
    """
    if isinstance(inputs, str) and not is_image(inputs):
        inputs = [inputs]
    if isinstance(inputs, list | tuple):
        words = [isinstance(value, str) and not is_image(value) for value in inputs]
        if words and all(words):
            _check(encoder, feature, Modality.CAPTIONS)
            return narrowed(encoder.encode_texts(list(inputs), [feature])[feature])
        if any(words):
            raise UsageError(
                f"{inputs[words.index(True)]!r} is words (or no picture is there), others are "
                "images",
                hint="encode sentences and images in two calls",
            )
    _check(encoder, feature, Modality.IMAGES)
    pixels = _batches(encoder, (given.image for given in given_images(inputs)))
    encoded = in_lanes(lambda some: encoder.encode_images(some, [feature]), pixels, encoder)
    batches = [arrays[feature] for _, arrays in encoded]
    if not batches:
        shape = encoder.features(Modality.IMAGES)[feature].shape
        return narrowed(np.empty((0, *shape), np.float32))
    return narrowed(np.concatenate(batches))


def _check(encoder: Encoder, feature: str, modality: Modality) -> None:
    if feature not in (known := encoder.features(modality)):
        raise unknown_features(encoder.spec.checkpoint, [feature], known, modality)


def _batches(encoder: Encoder, images: Iterable[Any]) -> Iterator[NDArray[np.uint8]]:
    look, batch = encoder.preprocessor, []
    for number, image in enumerate(images):
        try:
            batch.append(look.pixels(decode(image_bytes(image), least_side=look.least_side)))
        except DecodeError as error:
            raise DecodeError(f"image {number}: {error.message}", hint=error.hint) from error
        if len(batch) == encoder.default_batch_size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def narrowed(array: NDArray[Any]) -> NDArray[np.float32]:
    """(n, 1, d) -> (n, d); float32."""
    array = array[:, 0] if array.ndim == 3 and array.shape[1] == 1 else array
    return array.astype(np.float32, copy=False)
