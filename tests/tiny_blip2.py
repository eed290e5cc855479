"""Tiny real BLIP-2 models, seeded. Traps: transformers initialises the vision tower with 1e-10
and the query tokens with zeros, so that every image and every query would be the same vector.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
)

from tests.tiny import IMAGE_SIZE, VOCABULARY

QUERIES = 4


def blip2_config(
    text_config: dict[str, Any] | None = None, *, image_size: int = IMAGE_SIZE
) -> Blip2Config:
    """Two vision layers of 32 dims, two Q-Former layers of 24."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": 8,
    }
    qformer = {
        "vocab_size": len(VOCABULARY) + 1,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "use_qformer_text_input": text_config is None,
    }
    return Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text_config,
        num_query_tokens=QUERIES,
        image_text_hidden_size=16,
        image_token_index=None if text_config is None else len(VOCABULARY),
    )


def tokenizer() -> BertTokenizer:
    """The WordPiece tokenizer of the tiny models, [DEC] appended as LAVIS does."""
    made = BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)})
    made.add_special_tokens({"bos_token": "[DEC]"})
    return made


def save_blip2(directory: Path, *, seed: int = 0, image_size: int = IMAGE_SIZE) -> Path:
    """Write a random BLIP-2 retrieval checkpoint in hub layout."""
    return _save(Blip2ForImageTextRetrieval, blip2_config(image_size=image_size), directory, seed)


def save_blip2_opt(directory: Path, *, seed: int = 0) -> Path:
    """Write a random BLIP-2 with OPT as its language model in hub layout."""
    text = {
        "model_type": "opt",
        "vocab_size": len(VOCABULARY) + 1,
        "hidden_size": 20,
        "word_embed_proj_dim": 20,
        "ffn_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    return _save(Blip2ForConditionalGeneration, blip2_config(text), directory, seed)


def save_blip2_t5(directory: Path, *, seed: int = 0) -> Path:
    """Write a random BLIP-2 with Flan-T5 as its language model in hub layout."""
    text = {
        "model_type": "t5",
        "vocab_size": len(VOCABULARY) + 1,
        "d_model": 20,
        "d_kv": 5,
        "d_ff": 40,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 0,
        "eos_token_id": 3,
        "decoder_start_token_id": 0,
        "bos_token_id": 2,
    }
    return _save(Blip2ForConditionalGeneration, blip2_config(text), directory, seed)


def _save(kind: Any, config: Blip2Config, directory: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = kind(config)
    for name, parameter in model.named_parameters():
        if name.startswith("vision_model") or parameter.dim() > 1:
            nn.init.normal_(parameter, mean=float("norm" in name.lower()), std=0.2)
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory
