"""Architecture read from the shapes of the authors' tensors."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.import_positions import grid_side
from retrieval_engine.models.import_settings import Settings

Tensors = Mapping[str, torch.Tensor]
VISION = "visual_encoder."


def vision_config(tensors: Tensors, settings: Settings) -> dict[str, Any]:
    """Fields of HF's vision config, the image size that of the stored position embedding.

    Trap: HF's default eps is 1e-5 for BLIP; both ViTs were trained with 1e-6.

    Raises:
        CheckpointInvalid: a tensor that says so is absent, or `config` says otherwise.
    """
    width, _, patch, _ = _shape(tensors, f"{VISION}patch_embed.proj.weight", 4)
    depth = depth_of(tensors, f"{VISION}blocks.")
    mlp = _shape(tensors, f"{VISION}blocks.0.mlp.fc1.weight", 2)[0]
    read = {"embed_dim": width, "depth": depth, "patch_size": patch, "mlp_hidden": mlp}
    settings.agree("vit", read)
    _shape(tensors, f"{VISION}pos_embed", 3)
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": depth,
        "num_attention_heads": settings.vision_heads(width),
        "image_size": grid_side(tensors[f"{VISION}pos_embed"]) * patch,
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": settings.vit.get("layer_norm_eps", 1e-6),
        "initializer_range": 0.02,
    }


def text_config(tensors: Tensors, prefix: str, settings: Settings) -> dict[str, Any]:
    """Fields that HF's text and Q-Former configs share.

    Args:
        tensors: in the authors' names.
        prefix: of the BERT inside, e.g. `text_encoder.` or `Qformer.bert.`.
        settings: what the shapes cannot tell.

    Raises:
        CheckpointInvalid: a tensor that says so is absent, or `config` says otherwise.
    """
    vocabulary, width = _shape(tensors, f"{prefix}embeddings.word_embeddings.weight", 2)
    positions, _ = _shape(tensors, f"{prefix}embeddings.position_embeddings.weight", 2)
    depth = depth_of(tensors, f"{prefix}encoder.layer.")
    ffn = _shape(tensors, f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)[0]
    read = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "intermediate_size": ffn,
        "max_position_embeddings": positions,
    }
    settings.agree("text", read)
    heads = settings.text_heads(width)
    return {
        **settings.text_fields(),
        **read,
        "vocab_size": vocabulary,
        "num_attention_heads": heads,
    }


def depth_of(tensors: Iterable[str], prefix: str) -> int:
    """Number of layers whose tensors start with the prefix.

    Raises:
        CheckpointInvalid: there is none.
    """
    layers = {
        name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)
    }
    numbers = [int(layer) for layer in layers if layer.isdecimal()]
    if not numbers:
        raise CheckpointInvalid(f"the checkpoint lacks {prefix}*")
    return max(numbers) + 1


def _shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointInvalid(f"the checkpoint lacks {name}")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions:
        raise CheckpointInvalid(f"{name} has shape {shape}, expected {dimensions} dimensions")
    return shape
