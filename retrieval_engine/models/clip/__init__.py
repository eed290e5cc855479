"""CLIP (Radford et al., ICML 2021) in Hugging Face layout: the whole family.

`encoder` gives features of images and texts. It matches no pairs by cross-attention and writes no
captions: re-ranking and captions of its stores need another model.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily
from retrieval_engine.records import Json

if TYPE_CHECKING:
    from retrieval_engine.models.clip.encoder import open_encoder as open_encoder

__getattr__ = lazily(__name__, {".encoder": ("open_encoder",)})

_PARTS = {
    "vision_model.": "vision",
    "visual_projection.": "image",
    "text_model.": "text",
    "text_projection.": "text",
}


def accepts(config: Mapping[str, Json]) -> bool:
    """Whether a config.json is a CLIP's, both towers of it."""
    return config.get("model_type") == "clip"


def part_of(name: str) -> str | None:
    """Part of the encoder that a tensor of this name decides; None for the temperature."""
    return next((part for start, part in _PARTS.items() if name.startswith(start)), None)
