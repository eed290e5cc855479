"""BLIP (Li et al., ICML 2022): the whole family.

`encoder` gives features, `cross_encoder` matches (ITM), `captioner` writes, `learner` is trained,
`text_tower` reads words without transformers, `translation` reads the authors' own files.
"""

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily
from retrieval_engine.models.blip.settings import captioner_part_of as captioner_part_of
from retrieval_engine.models.blip.settings import part_of as part_of
from retrieval_engine.records import Json

if TYPE_CHECKING:
    from retrieval_engine.models.blip.captioner import open_captioner as open_captioner
    from retrieval_engine.models.blip.encoder import open_encoder as open_encoder
    from retrieval_engine.models.blip.learner import open_learner as open_learner
    from retrieval_engine.models.blip.text_tower import open_text_tower as open_text_tower
    from retrieval_engine.models.blip.translation import translate as translate

__getattr__ = lazily(
    __name__,
    {
        ".captioner": ("open_captioner",),
        ".encoder": ("open_encoder",),
        ".learner": ("open_learner",),
        ".text_tower": ("open_text_tower",),
        ".translation": ("translate",),
    },
)


def accepts(config: Mapping[str, Json]) -> bool:
    """Whether a config.json is a BLIP's."""
    return config.get("model_type") == "blip"


def recognise(parts: Set[str]) -> str:
    """What kind of the authors' files has tensors of these first names; empty for none."""
    if "Qformer" in parts or "cls_head" in parts or "vision_model" in parts:
        return ""
    matches = bool({"vision_proj", "text_proj", "itm_head"} & parts)
    if {"text_encoder", "text_decoder"} <= parts:
        return "blip-pretraining" if matches else ""  # without, it answers questions
    if "text_encoder" in parts:
        return "blip-retrieval"
    return "blip-captioning" if "text_decoder" in parts else ""
