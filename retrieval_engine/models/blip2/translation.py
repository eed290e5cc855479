"""LAVIS's BLIP-2 checkpoints with a Q-Former that reads text: stage 1 and retrieval.

Traps: `use_qformer_text_input` must be set, or the text side is random; LAVIS keeps no key bias
(qkv bias = [q, 0, v]); `ln_vision` has torch's eps of 1e-5 while the ViT's norms have 1e-6, and
HF's config knows one eps for both; the vocabulary ends with [DEC] alone.
"""

import re

import torch
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from retrieval_engine.errors import CheckpointInvalid, UsageError
from retrieval_engine.models.blip.translation import VISION_NAMES
from retrieval_engine.models.import_names import Translation, drop, rename
from retrieval_engine.models.import_settings import Settings
from retrieval_engine.models.import_shapes import (
    VISION,
    Tensors,
    depth_of,
    text_config,
    vision_config,
)

_NAMES = (
    *VISION_NAMES,
    ("ln_vision.", "vision_model.post_layernorm."),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer.bert.embeddings.", "embeddings."),
    ("Qformer.bert.encoder.", "qformer.encoder."),
    (".attention.self.", ".attention.attention."),
    (".crossattention.self.", ".crossattention.attention."),
    ("vision_proj.", "vision_projection."),
    ("text_proj.", "text_projection."),
)
_RULES = {
    "language-model head of the Q-Former": r"^Qformer\.cls\.",
    "position_ids": r"(^|\.)position_ids$",
    "temperature": r"^temp$",
}
QFORMER = "blip2-qformer"
_BERT = "Qformer.bert."
# LAVIS takes 39 of EVA ViT-g's 40 blocks, and neither its last norm nor its classifier.
_EVA_WIDTH, _EVA_BLOCKS = 1408, 39
_EVA_RULES = {"not part of LAVIS's tower": r"^(norm|fc_norm|head|mask_token|rel_pos_bias)\b"}


def add_vision(tensors: Tensors, tower: Tensors, settings: Settings) -> dict[str, torch.Tensor]:
    """A checkpoint with the vision tower from a file of its own (`eva_vit_g.pth`).

    LAVIS leaves frozen parameters out of what it saves, so stage 1 files hold no vision tower.

    Raises:
        UsageError: the checkpoint has a vision tower already.
    """
    if any(name.startswith(VISION) for name in tensors):
        raise UsageError("`vision` is given, but the checkpoint holds its own vision tower")
    kept, _ = drop({n.removeprefix(VISION): t for n, t in tower.items()}, _EVA_RULES)
    blocks = depth_of(kept, "blocks.")
    wide = "cls_token" in kept and kept["cls_token"].shape[-1] == _EVA_WIDTH
    depth = settings.vit.get("depth", min(blocks, _EVA_BLOCKS) if wide else blocks)
    beyond = {f"blocks.{n}." for n in range(depth, blocks)}
    kept = {n: t for n, t in kept.items() if not n.startswith(tuple(beyond))}
    return {**tensors, **{VISION + name: tensor for name, tensor in kept.items()}}


def translate(
    tensors: Tensors, kind: str, settings: Settings, tower: Tensors | None = None
) -> Translation:
    """A LAVIS Q-Former checkpoint in Hugging Face's names.

    Args:
        tensors: in LAVIS's names.
        kind: `QFORMER`.
        settings: what the shapes cannot tell.
        tower: its vision tower from a file of its own, where it has none.

    Raises:
        CheckpointInvalid: a tensor that tells the architecture is absent or contradicts settings.
    """
    if tower is not None:
        tensors = add_vision(tensors, tower, settings)
    if not any(name.startswith(VISION) for name in tensors):
        raise CheckpointInvalid(
            "the checkpoint holds no vision tower: LAVIS does not save what it keeps frozen",
            hint="give the tower's own file too: `vision='eva_vit_g.pth'`",
        )
    kept, dropped = drop(tensors, _RULES)
    kept = _join_biases(kept)
    mean, std = settings.normalisation()
    return Translation(
        kind=kind,
        config=_config(kept, settings),
        models=(Blip2ForImageTextRetrieval,),
        tensors={rename(name, _NAMES): tensor for name, tensor in kept.items()},
        names=_NAMES,
        dropped=dropped,
        special_tokens=("[DEC]",),
        mean=mean,
        std=std,
        temperature=float(tensors["temp"]) if "temp" in tensors else None,
    )


def _join_biases(tensors: Tensors) -> dict[str, torch.Tensor]:
    joined = dict(tensors)
    for name in tensors:
        if found := re.fullmatch(r"(visual_encoder\.blocks\.\d+\.attn\.)q_bias", name):
            block = found.group(1)
            if f"{block}v_bias" in joined:
                query, value = joined.pop(f"{block}q_bias"), joined.pop(f"{block}v_bias")
                joined[f"{block}qkv.bias"] = torch.cat((query, torch.zeros_like(value), value))
    return joined


def _config(tensors: Tensors, settings: Settings) -> Blip2Config:
    text = text_config(tensors, _BERT, settings)
    frequency = _cross_attention_frequency(tensors, text["num_hidden_layers"])
    queries = tensors["query_tokens"].shape[1] if "query_tokens" in tensors else 32
    embed_dim = tensors["vision_proj.weight"].shape[0] if "vision_proj.weight" in tensors else 256
    settings.agree("text", {"cross_attention_freq": frequency, "query_length": queries})
    settings.agree("top", {"embed_dim": embed_dim, "num_query_token": queries})
    vision = vision_config(tensors, settings) | {
        "qkv_bias": f"{VISION}blocks.0.attn.qkv.bias" in tensors,
        # Not a field of HF's: the family `blip2` sets this eps on the final norm.
        "post_layernorm_eps": settings.top.get("ln_vision_eps", 1e-5),
    }
    qformer = {**text, "cross_attention_frequency": frequency, "use_qformer_text_input": True}
    return Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        num_query_tokens=queries,
        image_text_hidden_size=embed_dim,
    )


def _cross_attention_frequency(tensors: Tensors, depth: int) -> int:
    """Every how many layers the Q-Former looks at the image, from the layers that can."""
    prefix = f"{_BERT}encoder.layer."
    looking = [
        layer
        for layer in range(depth)
        if any(name.startswith(f"{prefix}{layer}.crossattention.") for name in tensors)
    ]
    frequency = looking[1] if len(looking) > 1 else depth
    if looking != list(range(0, depth, frequency)):
        raise CheckpointInvalid(f"cross-attention in layers {looking}: not every n-th from 0")
    return frequency
