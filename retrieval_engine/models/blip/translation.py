"""Checkpoints of salesforce/BLIP and LAVIS's BLIP: retrieval, captioning, pre-training.

Traps: HF's text config has 8 heads where the models have 12, its ViT an eps of 1e-5 where they
have 1e-6, and its loss no label smoothing where they have 0.1. All load without a word.
"""

from collections.abc import Mapping

import torch
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from retrieval_engine.errors import UsageError
from retrieval_engine.models.import_names import Translation, drop, rename
from retrieval_engine.models.import_settings import Settings
from retrieval_engine.models.import_shapes import Tensors, text_config, vision_config

VISION_NAMES = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)
_NAMES = (*VISION_NAMES, ("visual_encoder.norm.", "vision_model.post_layernorm."))
_RULES = {
    "momentum copies": r"^\w+_m\.",
    "queues": r"^(image_queue|text_queue|idx_queue|ptr_queue|queue_ptr)$",
    "position_ids": r"(^|\.)position_ids$",
    "temperature": r"^temp$",
}
_HEAD = "text_decoder.cls.predictions.decoder."
_EMBEDDINGS = "text_decoder.bert.embeddings.word_embeddings.weight"
_HEAD_BIAS = "text_decoder.cls.predictions.bias"
RETRIEVAL, CAPTIONING, PRETRAINING = "blip-retrieval", "blip-captioning", "blip-pretraining"
_MODELS = {
    RETRIEVAL: (BlipForImageTextRetrieval,),
    CAPTIONING: (BlipForConditionalGeneration,),
    PRETRAINING: (BlipForImageTextRetrieval, BlipForConditionalGeneration),
}


def translate(
    tensors: Tensors, kind: str, settings: Settings, tower: Tensors | None = None
) -> Translation:
    """A BLIP checkpoint in Hugging Face's names.

    Args:
        tensors: in the authors' names.
        kind: retrieval, captioning or pre-training.
        settings: what the shapes cannot tell.
        tower: refused; BLIP's files hold their vision tower.

    Raises:
        CheckpointInvalid: a tensor that tells the architecture is absent or contradicts settings.
        UsageError: a tower is given.
    """
    if tower is not None:
        raise UsageError("`vision` is for BLIP-2 checkpoints saved without their vision tower")
    kept, dropped = drop(tensors, _RULES)
    decodes = kind != RETRIEVAL
    tied = not decodes or _head_is_tied(kept)
    if decodes and tied:
        head = [name for name in kept if name.startswith(_HEAD)]
        kept = {name: tensor for name, tensor in kept.items() if name not in head}
        dropped["tied to the word embeddings"] = head
    notes = [] if tied else ["the decoder's output layer is not tied to its word embeddings"]
    mean, std = settings.normalisation()
    return Translation(
        kind=kind,
        config=_config(kept, kind, settings, tied=tied),
        models=_MODELS[kind],
        tensors={rename(name, _NAMES): tensor for name, tensor in kept.items()},
        names=_NAMES,
        dropped=dropped,
        special_tokens=("[DEC]", "[ENC]"),
        mean=mean,
        std=std,
        temperature=float(tensors["temp"]) if "temp" in tensors else None,
        notes=notes,
    )


def _config(tensors: Tensors, kind: str, settings: Settings, *, tied: bool) -> BlipConfig:
    bert = "text_decoder.bert." if kind == CAPTIONING else "text_encoder."
    text = text_config(tensors, bert, settings)
    smoothing = settings.top.get("lm_label_smoothing", 0.1)
    embed_dim = tensors["vision_proj.weight"].shape[0] if "vision_proj.weight" in tensors else 256
    if kind != CAPTIONING:
        settings.agree("top", {"embed_dim": embed_dim})
    return BlipConfig(
        vision_config=vision_config(tensors, settings),
        text_config=text
        | {"label_smoothing": smoothing, "tie_word_embeddings": tied, "bos_token_id": None},
        image_text_hidden_size=embed_dim,
        label_smoothing=smoothing,
        tie_word_embeddings=tied,
    )


def _head_is_tied(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the output layer is the word embeddings again.

    Captioning files hold one matrix under both names. In pre-training the authors tie the
    decoder's embeddings to the text encoder's after its output layer was tied to the old ones,
    so that the two differ there; transformers would silently make them one.
    """
    pairs = ((f"{_HEAD}weight", _EMBEDDINGS), (f"{_HEAD}bias", _HEAD_BIAS))
    return all(
        a not in tensors or (b in tensors and torch.equal(tensors[a], tensors[b])) for a, b in pairs
    )
