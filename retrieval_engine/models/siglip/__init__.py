"""SigLIP (Zhai et al., ICCV 2023) and SigLIP 2 (Tschannen et al., 2025) in Hugging Face layout.

`encoder` gives features of images and texts, `texts` their words as the models learned them. They
match no pairs by cross-attention and write no captions. SigLIP 2's NaFlex models, which take
pictures of any shape, are not read.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily
from retrieval_engine.records import Json

if TYPE_CHECKING:
    from retrieval_engine.models.siglip.encoder import open_encoder as open_encoder

__getattr__ = lazily(__name__, {".encoder": ("open_encoder",)})

_PARTS = {"vision_model.head.": "image", "vision_model.": "vision", "text_model.": "text"}


def accepts(config: Mapping[str, Json]) -> bool:
    """Whether a config.json is a SigLIP's, both towers of it."""
    return config.get("model_type") == "siglip"


def part_of(name: str) -> str | None:
    """Part of the encoder that a tensor of this name decides; None for temperature and bias."""
    return next((part for start, part in _PARTS.items() if name.startswith(start)), None)
