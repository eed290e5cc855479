"""What the tensors' shapes cannot tell: heads, eps, activation, image normalisation.

Defaults are those of the published checkpoints; `config` overrides them with a JSON file of

    {"image_size": 384, "image_mean": [...], "image_std": [...],
     "vit": {"num_heads": 12, "layer_norm_eps": 1e-06, ...},        # the vision tower
     "med_config" | "qformer": {"num_attention_heads": 12, ...},    # the text side, BERT's fields
     "ln_vision_eps": 1e-05, "lm_label_smoothing": 0.1}

or with BLIP's own med_config.json (BERT's fields at the top). What is named there and can be read
from the tensors too must agree with them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrieval_engine.errors import CheckpointInvalid, UsageError
from retrieval_engine.models.preprocess import CLIP_MEAN, CLIP_STD

# Width -> heads of the towers that BLIP and LAVIS publish (BERT-base, ViT-S/B/L, EVA ViT-g).
_PUBLISHED_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1408: 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The values of `config`, by section; empty where it says nothing.

    Attributes:
        vit: fields of the vision tower, in timm's names.
        text: fields of the text side, in BERT's names.
        top: fields outside both.
    """

    vit: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    top: Mapping[str, Any] = field(default_factory=dict)

    def vision_heads(self, width: int) -> int:
        """Attention heads of the vision tower."""
        return _heads(self.vit.get("num_heads"), width, "vision tower", "vit.num_heads")

    def text_heads(self, width: int) -> int:
        """Attention heads of the text side."""
        given = self.text.get("num_attention_heads")
        return _heads(given, width, "text side", "med_config.num_attention_heads")

    def text_fields(self) -> dict[str, Any]:
        """The fields of the text side that shapes cannot tell, with BERT's own defaults."""
        defaults = {
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "initializer_range": 0.02,
        }
        return {name: self.text.get(name, default) for name, default in defaults.items()}

    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and std of the pixels' channels on the scale 0-1."""
        mean = self.top.get("image_mean", CLIP_MEAN)
        return list(mean), list(self.top.get("image_std", CLIP_STD))

    def agree(self, section: str, read: Mapping[str, int]) -> None:
        """Check that what was read from the tensors is what the section says, where it does.

        Raises:
            CheckpointInvalid: they differ; the message names both.
        """
        said = getattr(self, section)
        wrong = [
            f"{section}.{name} is {value} in the tensors and {said[name]} in `config`"
            for name, value in read.items()
            if name in said and said[name] != value
        ]
        if wrong:
            raise CheckpointInvalid(
                "; ".join(wrong), hint="give the config of this checkpoint, or none"
            )


def read_settings(file: Path | None) -> Settings:
    """The settings in a file; the defaults alone without one.

    Raises:
        UsageError: the file is no JSON object, or says nothing about a model.
    """
    if file is None:
        return Settings()
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"`config={str(file)!r}` cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"`config={str(file)!r}` is not a JSON object")
    if "num_attention_heads" in value:  # BLIP's med_config.json
        return Settings(text=value)
    text = value.get("med_config", value.get("qformer", {}))
    vit = value.get("vit", {})
    vit = {} if vit in ("base", "large") else vit  # as BLIP's yaml files have it: shapes tell
    if not isinstance(text, dict) or not isinstance(vit, dict):
        raise UsageError(
            f"`config={str(file)!r}`: 'vit', 'med_config' and 'qformer' must be objects"
        )
    if not {"vit", "med_config", "qformer", "image_size", "ln_vision_eps"} & set(value):
        raise UsageError(
            f"`config={str(file)!r}` has none of: image_size, vit, med_config, qformer",
            hint='e.g. {"image_size": 384, "vit": {"num_heads": 12}}',
        )
    top = {k: v for k, v in value.items() if not isinstance(v, dict)}
    return Settings(vit=vit, text=text, top=top)


def _heads(given: Any, width: int, side: str, field_name: str) -> int:
    heads = given if given is not None else _PUBLISHED_HEADS.get(width)
    if heads is None:
        raise CheckpointInvalid(
            f"the {side} is {width} wide, as in no published checkpoint, and its number of "
            "attention heads is not in the tensors",
            hint=f"say {field_name} in a JSON file and pass it as `config`",
        )
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointInvalid(f"{field_name} is {heads!r}, which does not divide {width}")
    return heads
