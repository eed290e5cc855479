"""Features out: models that turn pictures and captions into arrays.

A family is one file in `families/` with

    def accepts(config: Mapping[str, Json]) -> bool      # is this config.json one of ours?
    def open_encoder(checkpoint: Checkpoint, *, device: str, dtype: str) -> Encoder
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrieval_engine import plugins
from retrieval_engine.encoders.adapters import adapted, with_adapter
from retrieval_engine.encoders.checkpoint import Checkpoint, read_config, resolve
from retrieval_engine.encoders.preprocess import ImagePreprocessor
from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.records import Feature, Modality

if TYPE_CHECKING:
    from retrieval_engine.encoders.matching import Matcher

FAMILIES = "retrieval_engine.encoders.families"

Arrays = dict[str, NDArray[Any]]


class Encoder(Protocol):
    """A model that emits features.

    Attributes:
        spec: all that decides its numbers.
        preprocessor: what turns a decoded picture into the pixels it reads; light, picklable,
            and meant for decode workers.
        default_batch_size: images per call that suit the device.
    """

    spec: EncoderSpec
    preprocessor: ImagePreprocessor
    default_batch_size: int

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


def open_encoder(
    checkpoint: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    family: str = "auto",
    adapter: str | Path = "",
) -> Encoder:
    """Load an encoder.

    Args:
        checkpoint: a model that ships with the package (`vlre-tiny`), a directory in Hugging Face
            layout, or a hub id, optionally with `@revision`; or the directory of an adapter that
            names its base.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        dtype: arithmetic of the towers: `float32`, `bfloat16`, `float16`, or `auto` for half
            precision where the device is fast at it.
        family: file name in `families/`, or `auto` to tell from the checkpoint's config.
        adapter: directory of an adapter for the checkpoint; it changes the fingerprint.

    Raises:
        CheckpointNotFound: neither a directory nor a reachable hub id.
        CheckpointInvalid: the files are not a model that some family knows.
        FingerprintMismatch: the adapter was trained on another base.
    """
    found = resolve(checkpoint)
    if adapter:
        found = with_adapter(found, Path(adapter).resolve())
    return open_checkpoint(found, device=device, dtype=dtype, family=family)


def open_checkpoint(found: Checkpoint, *, device: str, dtype: str, family: str) -> Encoder:
    """Load an encoder from files that are at hand; see `open_encoder`."""
    name = family if family != "auto" else family_of(found)
    module = plugins.load(FAMILIES, name, noun="encoder family")
    encoder: Encoder = module.open_encoder(found, device=device, dtype=dtype)
    if found.adapter is not None:
        encoder.spec = adapted(encoder.spec, found.adapter, module.part_of)
    return encoder


def reopen_encoder(spec: EncoderSpec, *, device: str = "auto", model: str = "") -> Encoder:
    """The encoder that a store, an index or a head was made with.

    Args:
        spec: as it was recorded.
        device: where it shall run.
        model: where the checkpoint is now, if it has moved; the caller checks the fingerprint.

    Raises:
        EncoderError: it cannot be loaded.
    """
    found = resolve(recorded_name(spec, model))
    return open_checkpoint(found, device=device, dtype=spec.dtype, family=spec.family)


def recorded_name(spec: EncoderSpec, model: str = "") -> str:
    """The checkpoint of a spec as `resolve` takes it, or where it is now."""
    pinned = f"@{spec.revision}" if spec.revision and "@" not in spec.checkpoint else ""
    return model or spec.checkpoint + pinned


def family_of(checkpoint: Checkpoint) -> str:
    """Name of the family that knows this checkpoint's config.

    Raises:
        CheckpointInvalid: no family does.
    """
    config = read_config(checkpoint.path)
    for name in plugins.names(FAMILIES):
        if plugins.load(FAMILIES, name, noun="encoder family").accepts(config):
            return name
    seen = config.get("model_type") or config.get("architectures")
    raise CheckpointInvalid(
        f"{checkpoint.name} holds a model of type {seen!r}, which no encoder family knows",
        hint=f"families: {', '.join(plugins.names(FAMILIES))}; other encoders' vectors can be "
        "brought in with `vlre import-embeddings`",
    )
