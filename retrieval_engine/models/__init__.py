"""Features out: a family of models is one folder here, and what families share lies beside them.

`open_encoder` finds the family that knows a checkpoint; see `family.Family` for what one consists
of, `encoder`, `matcher`, `captioner` and `learner` for what its models can do.
"""

from dataclasses import replace
from pathlib import Path

from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models.adapters import adapted, resolve, with_adapter
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.encoder import Arrays, Encoder, ReadsTokens
from retrieval_engine.models.family import family_of, load_family
from retrieval_engine.models.preprocess import DRAFT

__all__ = [
    "Arrays",
    "Encoder",
    "ReadsTokens",
    "decodes_fast",
    "open_checkpoint",
    "open_encoder",
    "recorded_checkpoint",
    "reopen_encoder",
]


def open_encoder(
    checkpoint: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    family: str = "auto",
    adapter: str | Path = "",
    fast_decode: bool = False,
) -> Encoder:
    """Load an encoder.

    Args:
        checkpoint: a model that ships with the package (`vlre-photo`, `vlre-tiny`), a directory in Hugging Face
            layout, or a hub id, optionally with `@revision`; or the directory of an adapter that
            names its base.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        dtype: arithmetic of the towers: `float32`, `bfloat16`, `float16`, or `auto` for half
            precision where the device is fast at it.
        family: name of a folder in `models/`, or `auto` to tell from the checkpoint's config.
        adapter: directory or hub id of an adapter for the checkpoint; it changes the fingerprint.
        fast_decode: decode JPEGs of at least twice the model's image size at a half, a quarter or
            an eighth of theirs, several times as quickly; it changes the fingerprint.

    Raises:
        CheckpointNotFound: neither a directory nor a reachable hub id.
        CheckpointInvalid: the files are not a model that some family knows.
        FingerprintMismatch: the adapter was trained on another base.
    """
    found = replace(resolve(checkpoint), fast_decode=fast_decode)
    if adapter:
        found = with_adapter(found, adapter)
    return open_checkpoint(found, device=device, dtype=dtype, family=family)


def open_checkpoint(found: Checkpoint, *, device: str, dtype: str, family: str) -> Encoder:
    """Load an encoder from files that are at hand; see `open_encoder`."""
    name = family if family != "auto" else family_of(found)
    known = load_family(name)
    encoder = known.open_encoder(found, device=device, dtype=dtype)
    if found.adapter is not None:
        encoder.spec = adapted(encoder.spec, found.adapter, known.part_of)
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
    found = recorded_checkpoint(spec, model)
    return open_checkpoint(found, device=device, dtype=spec.dtype, family=spec.family)


def recorded_checkpoint(spec: EncoderSpec, model: str = "") -> Checkpoint:
    """The checkpoint of a spec, or where it is now, to be opened as it was."""
    return replace(resolve(_recorded_name(spec, model)), fast_decode=decodes_fast(spec))


def decodes_fast(spec: EncoderSpec, checkpoint: str = "") -> bool:
    """Whether an encoder's large JPEGs are decoded at a fraction of their size.

    Args:
        spec: of the encoder, as a store has it.
        checkpoint: a model that is to see as it did. Another one does not follow: some models
            always decode so (`vlre-photo`), and no other was trained on such pixels.
    """
    is_its_own = not checkpoint or resolve(checkpoint).name == spec.checkpoint
    return is_its_own and spec.preprocessing.endswith(DRAFT)


def _recorded_name(spec: EncoderSpec, model: str = "") -> str:
    """The checkpoint of a spec as `resolve` takes it, or where it is now."""
    pinned = f"@{spec.revision}" if spec.revision and "@" not in spec.checkpoint else ""
    return model or spec.checkpoint + pinned
