"""BLIP (Li et al., ICML 2022): the whole family.

`encoder` gives features, `cross_encoder` matches (ITM), `captioner` writes, `learner` is trained,
`text_tower` reads words without transformers, `translation` reads the authors' own files.
"""

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

from retrieval_engine.errors import UsageError
from retrieval_engine.models.blip.settings import captioner_part_of as captioner_part_of
from retrieval_engine.models.blip.settings import part_of as part_of
from retrieval_engine.records import Json

if TYPE_CHECKING:
    import torch

    from retrieval_engine.fingerprint import EncoderSpec
    from retrieval_engine.models.captioner import Captioner
    from retrieval_engine.models.checkpoint import Checkpoint
    from retrieval_engine.models.encoder import Encoder
    from retrieval_engine.models.import_names import Translation
    from retrieval_engine.models.import_settings import Settings
    from retrieval_engine.models.import_shapes import Tensors
    from retrieval_engine.models.learner import Learner, Task
    from retrieval_engine.models.text_tower import TextTower


def accepts(config: Mapping[str, Json]) -> bool:
    """Whether a config.json is a BLIP's."""
    return config.get("model_type") == "blip"


def open_encoder(checkpoint: "Checkpoint", *, device: str, dtype: str) -> "Encoder":
    """Load a `BlipForImageTextRetrieval`; see `models.open_encoder`."""
    from retrieval_engine.models.blip.encoder import BlipEncoder

    return BlipEncoder(checkpoint, device=device, dtype=dtype)


def open_captioner(checkpoint: "Checkpoint", *, device: str, dtype: str) -> "Captioner":
    """Load a `BlipForConditionalGeneration`; see `captioner.open_captioner`."""
    from retrieval_engine.models.blip.captioner import BlipCaptioner

    return BlipCaptioner(checkpoint, device=device, dtype=dtype)


def open_learner(
    checkpoint: "Checkpoint",
    task: "Task",
    *,
    with_tower: bool,
    dtype: "torch.dtype",
    quantize: str,
) -> "Learner":
    """Load what a task trains; see `learner.open_learner`."""
    from retrieval_engine.models.blip import learner

    return learner.open_learner(
        checkpoint, task, with_tower=with_tower, dtype=dtype, quantize=quantize
    )


def open_text_tower(
    checkpoint: "Checkpoint", spec: "EncoderSpec", *, device: str
) -> "TextTower | None":
    """The text side alone, where it is certain to be equal; see `text_tower`."""
    from retrieval_engine.models.blip import text_tower

    return text_tower.open_text_tower(checkpoint, spec, device=device)


def recognise(parts: Set[str]) -> str:
    """What kind of the authors' files has tensors of these first names; empty for none."""
    if "Qformer" in parts or "cls_head" in parts or "vision_model" in parts:
        return ""
    matches = bool({"vision_proj", "text_proj", "itm_head"} & parts)
    if {"text_encoder", "text_decoder"} <= parts:
        return "blip-pretraining" if matches else ""  # without, it answers questions
    if "text_encoder" in parts:
        return "blip-retrieval"
    return "blip-captioning" if "text_decoder" in parts else ""


def translate(
    tensors: "Tensors", kind: str, settings: "Settings", tower: "Tensors | None"
) -> "Translation":
    """One of the authors' files in Hugging Face's names; see `translation.translate`.

    Raises:
        UsageError: a vision tower of its own is given.
    """
    from retrieval_engine.models.blip import translation

    if tower is not None:
        raise UsageError("`vision` is for BLIP-2 checkpoints saved without their vision tower")
    return translation.translate(tensors, kind, settings)
