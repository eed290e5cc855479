"""Tiny real models, seeded: the same code paths as the full-size ones, in milliseconds."""

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
)

WORDS = [
    "a",
    "an",
    "the",
    "dog",
    "cat",
    "bird",
    "horse",
    "man",
    "woman",
    "boy",
    "girl",
    "car",
    "boat",
    "tree",
    "house",
    "on",
    "in",
    "at",
    "of",
    "and",
    "grass",
    "sand",
    "snow",
    "water",
    "street",
    "red",
    "blue",
    "green",
    "yellow",
    "black",
    "white",
    "brown",
    "two",
    "picture",
    "running",
    "standing",
    "night",
    "sunset",
    "beach",
    ".",
    ",",
    "##s",
    "##ing",
]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*WORDS, *LETTERS])]
VOCABULARY += [f"##{letter}" for letter in LETTERS]
IMAGE_SIZE = 32


def blip_config(*, image_size: int = IMAGE_SIZE, width: int = 32, layers: int = 2) -> BlipConfig:
    """A BLIP of two layers and 32 dims (71 thousand parameters)."""
    words = len(VOCABULARY) + 2
    text = {
        "vocab_size": words,
        "hidden_size": width,
        "encoder_hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": words - 2,
        "eos_token_id": 2,
        "sep_token_id": 3,
        "pad_token_id": 0,
        "label_smoothing": 0.1,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": 8,
        "layer_norm_eps": 1e-6,
        # transformers' default of 1e-10 makes every image the same vector
        "initializer_range": 0.2,
    }
    return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)


def tokenizer() -> BertTokenizer:
    """The WordPiece tokenizer of the tiny models, [DEC] and [ENC] appended as BLIP does."""
    made = BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)})
    made.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return made


def save_blip(directory: Path, *, seed: int = 0, image_size: int = IMAGE_SIZE) -> Path:
    """Write a random BLIP retrieval checkpoint in hub layout."""
    torch.manual_seed(seed)
    model = BlipForImageTextRetrieval(blip_config(image_size=image_size))
    for name, parameter in model.named_parameters():
        if "text_encoder" in name and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def save_blip_captioner(directory: Path, *, seed: int = 0) -> Path:
    """Write a random BLIP captioning checkpoint in hub layout."""
    torch.manual_seed(seed)
    BlipForConditionalGeneration(blip_config()).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory
