"""Random checkpoints of the real sizes, in hub layout, for speed and memory (never for quality)."""

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
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
    "is",
    "are",
    "standing",
    "sitting",
    "running",
    "grass",
    "sand",
    "snow",
    "water",
    "street",
    "red",
    "blue",
    "green",
    "white",
    "black",
    "two",
    "people",
    "playing",
    "with",
    "holding",
    "under",
    "near",
    "beach",
    "park",
    "table",
    "room",
    "field",
    "large",
    "small",
    "young",
    "picture",
]


def blip(
    directory: Path, *, image_size: int = 384, large: bool = False, tiny: bool = False
) -> Path:
    """Write BLIP ViT-B/16 (224 M parameters), or ViT-L/16 (447 M), or a tiny one for tests."""
    torch.manual_seed(0)
    config = blip_config(image_size=image_size, large=large, tiny=tiny)
    BlipForImageTextRetrieval(config).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def blip_captioner(directory: Path, *, image_size: int = 384, tiny: bool = False) -> Path:
    """Write BLIP ViT-B/16 with its caption decoder (247 M parameters), or a tiny one.

    Its sentences mean nothing and never end: give them a length.
    """
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(blip_config(image_size=image_size, tiny=tiny))
    with torch.no_grad():
        for parameter in model.text_decoder.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # at its random size it hardly looks at the picture
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def blip_config(*, image_size: int = 384, large: bool = False, tiny: bool = False) -> BlipConfig:
    """The configuration of these checkpoints."""
    width, layers, heads = (1024, 24, 16) if large else (768, 12, 12)
    text: dict[str, object] = {"encoder_hidden_size": width, "num_attention_heads": 12}
    vision: dict[str, object] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    vision |= {"intermediate_size": 4 * width, "image_size": image_size, "layer_norm_eps": 1e-6}
    if tiny:
        small: dict[str, object] = {"hidden_size": 32, "num_hidden_layers": 2}
        small |= {"num_attention_heads": 2, "intermediate_size": 64}
        vision = {**small, "image_size": 32, "patch_size": 8}
        text = {**small, "encoder_hidden_size": 32, "max_position_embeddings": 64}
    return BlipConfig(
        text_config={"vocab_size": 30524, "eos_token_id": 2, "sep_token_id": 102, **text},
        vision_config={**vision, "initializer_range": 0.02},
        image_text_hidden_size=256,
    )


def blip2(directory: Path, *, tiny: bool = False) -> Path:
    """Write BLIP-2's ViT-g/14 at 224 pixels with its Q-Former (1.2 billion parameters), or tiny."""
    vision: dict[str, object] = {"initializer_range": 0.02}
    qformer: dict[str, object] = {"vocab_size": 30523, "use_qformer_text_input": True}
    if tiny:
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision |= {**small, "intermediate_size": 64, "image_size": 28}
        qformer |= {**small, "intermediate_size": 64, "encoder_hidden_size": 32}
    config = Blip2Config(vision_config=vision, qformer_config=qformer, image_text_hidden_size=256)
    torch.manual_seed(0)
    model = Blip2ForImageTextRetrieval(config)
    torch.nn.init.normal_(model.query_tokens, std=0.02)
    model.vision_model.half()  # as the published checkpoints keep it
    model.save_pretrained(directory)
    tokenizer(enc=False).save_pretrained(directory)
    return directory


def tokenizer(*, enc: bool = True) -> BertTokenizer:
    """A WordPiece tokenizer of BERT's size and ids whose known words are few."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    words = {999 + i: word for i, word in enumerate(WORDS)}
    names = {**special, **words}
    vocabulary = {names.get(i, f"[unused{i}]"): i for i in range(30522)}
    made = BertTokenizer(vocab=vocabulary)
    made.add_special_tokens({"bos_token": "[DEC]"})
    if enc:
        made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return made
