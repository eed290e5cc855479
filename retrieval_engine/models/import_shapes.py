"""Architecture read from the shapes of the authors' tensors, and position embeddings resized."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional

from retrieval_engine.errors import CheckpointInvalid, UsageError
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


def grid_side(positions: torch.Tensor) -> int:
    """Patches along one side of the image that a position embedding is made for.

    Args:
        positions: (1, 1 + g * g, width); the first is that of the class token.

    Raises:
        CheckpointInvalid: the patches do not make a square.
    """
    patches = positions.shape[1] - 1
    side = math.isqrt(patches)
    if side * side != patches:
        raise CheckpointInvalid(f"the position embedding is for {patches} patches: not a square")
    return side


def patches_of(image_size: int, patch_size: int) -> int:
    """Patches along one side of an image.

    Raises:
        UsageError: the image does not divide into whole patches.
    """
    if image_size < patch_size or image_size % patch_size:
        raise UsageError(
            f"image size {image_size} is not a multiple of the patch size {patch_size}",
            hint=f"try `image_size={max(1, round(image_size / patch_size)) * patch_size}`",
        )
    return image_size // patch_size


def interpolate(positions: torch.Tensor, side: int) -> torch.Tensor:
    """A position embedding for `side` x `side` patches, as BLIP's and LAVIS's loaders make it.

    Bicubic with `align_corners=False`, in float32, the class token's position untouched.

    Args:
        positions: (1, 1 + g * g, width).
        side: patches along one side of the new image.

    Returns:
        (1, 1 + side * side, width); the argument itself where g == side.
    """
    old = grid_side(positions)
    if old == side:
        return positions
    positions = positions.float()
    width = positions.shape[2]
    patches = positions[:, 1:].reshape(1, old, old, width).permute(0, 3, 1, 2)
    resized = functional.interpolate(
        patches, size=(side, side), mode="bicubic", align_corners=False
    )
    return torch.cat((positions[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)


def _shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointInvalid(f"the checkpoint lacks {name}")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions:
        raise CheckpointInvalid(f"{name} has shape {shape}, expected {dimensions} dimensions")
    return shape
