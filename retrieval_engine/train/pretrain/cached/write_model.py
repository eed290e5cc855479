"""Writes a model trained on cached states as one directory, the backbone inside."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertTokenizer

from retrieval_engine.models.blip.backbone import EfficientNetLite
from retrieval_engine.models.preprocess import preprocessor_config
from retrieval_engine.records import Json
from retrieval_engine.train.pretrain.cached.data import ChannelScale
from retrieval_engine.train.pretrain.cached.hybrid_model import CachedModel
from retrieval_engine.train.pretrain.cached.states import MEAN, STD
from retrieval_engine.train.pretrain.export import how_trained, write_directory

_NEW_TOKENS = 24
_NO_REPEAT = 2  # tokens in a row: small decoders say things twice
_OWN = ("bert.encoder.layer.", "cls.predictions.bias", "cls.predictions.transform.")
_SHARED = (".crossattention.", ".intermediate.", ".output.dense.", ".output.LayerNorm.")
_FOLDED = ("vision_model.embeddings.patch_embedding", "vision_model.mean_projection")


def export(
    model: CachedModel,
    backbone: EfficientNetLite,
    tokenizer: BertTokenizer,
    scale: ChannelScale,
    out: Path,
    *,
    dtype: torch.dtype,
    facts: Mapping[str, Json],
) -> None:
    """Write config, weights, tokenizer, preprocessing, generation settings and a model card.

    What the decoder shares with the encoder is written once; whoever loads the decoder takes it
    from there. The states' scale is folded into the two layers that read them.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(_card(out.name, facts), encoding="utf-8")
    config = model.config
    config.match_start = model.match_start().to_json()
    look = preprocessor_config(config.vision_config.image_size, (MEAN,) * 3, (STD,) * 3)
    write_directory(
        out,
        config,
        tokenizer,
        _weights(model, backbone, scale, dtype),
        generation={
            "max_new_tokens": _NEW_TOKENS,
            "no_repeat_ngram_size": _NO_REPEAT,
            "prompt": "",
        },
        look={**look, "decode": "draft"},
        facts=facts,
    )


def _weights(
    model: CachedModel, backbone: EfficientNetLite, scale: ChannelScale, dtype: torch.dtype
) -> dict[str, Tensor]:
    tensors = {name: t.float().cpu() for name, t in model.retrieval.state_dict().items()}
    shift, spread = torch.from_numpy(scale.shift), torch.from_numpy(scale.scale)
    for name in _FOLDED:
        weight = tensors[f"{name}.weight"] / spread
        tensors[f"{name}.bias"] = tensors[f"{name}.bias"] - weight @ shift
        tensors[f"{name}.weight"] = weight
    for name, tensor in backbone.state_dict().items():
        tensors[f"vision_model.backbone.{name}"] = tensor
    for name, tensor in model.text_decoder.state_dict().items():
        is_shared = ".attention." not in name and any(part in name for part in _SHARED)
        if name.startswith(_OWN) and not is_shared:
            tensors[f"text_decoder.{name}"] = tensor
    return {name: t.detach().to("cpu", dtype).contiguous() for name, t in tensors.items()}


def _card(name: str, facts: Mapping[str, Json]) -> str:
    config, report = facts["config"], facts["report"]
    assert isinstance(config, dict)
    assert isinstance(report, dict)
    return f"""---
tags: [blip, image-text-retrieval, image-captioning]
---
# {name}

A BLIP of {report["parameters"]:,} weights on a frozen {config["backbone"]}, trained by
`vlre pretrain` from the backbone's cached states.

{how_trained(name, facts)}"""
