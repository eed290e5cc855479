"""BLIP-2 (Li et al., ICML 2023): the whole family, with and without a language model.

`encoder` gives features of retrieval checkpoints and `language` those of checkpoints that speak,
both over `image_side`; `cross_encoder` matches (ITM), `captioner` writes (OPT, Flan-T5), `learner`
is trained, `parts` loads each part of a checkpoint alone, `translation` reads LAVIS's own files.
"""

import re
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily
from retrieval_engine.records import Json

if TYPE_CHECKING:
    from retrieval_engine.models.blip2.captioner import open_captioner as open_captioner
    from retrieval_engine.models.blip2.encoder import open_encoder as open_encoder
    from retrieval_engine.models.blip2.learner import open_learner as open_learner
    from retrieval_engine.models.blip2.translation import translate as translate

__getattr__ = lazily(
    __name__,
    {
        ".captioner": ("open_captioner",),
        ".encoder": ("open_encoder",),
        ".learner": ("open_learner",),
        ".translation": ("translate",),
    },
)

_PARTS = {
    r"vision_model\.": "vision",
    r"query_tokens|vision_projection\.": "image",
    r"qformer\..*\.(crossattention|intermediate_query|output_query)\.": "image",
    r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\.": "text",
    r"qformer\.": "shared",  # self-attention serves both sides
    r"(embeddings|text_projection)\.": "text",
    r"itm_head\.": "itm",
    r"language_": "text",  # of a checkpoint with a language model, that an adapter may touch
}
_SPEAKING_PARTS = {
    "vision_model.": "vision",
    "query_tokens": "image",
    "qformer.": "image",
    "language_": "text",
}


def accepts(config: Mapping[str, Json]) -> bool:
    """Whether a config.json is a BLIP-2's."""
    return config.get("model_type") == "blip-2"


def part_of(name: str) -> str | None:
    """Part of the encoder that a tensor of a retrieval checkpoint decides."""
    return next((part for pattern, part in _PARTS.items() if re.match(pattern, name)), None)


def captioner_part_of(name: str) -> str | None:
    """Part of the captioner that a tensor decides."""
    return next((part for start, part in _SPEAKING_PARTS.items() if name.startswith(start)), None)


def recognise(parts: Set[str]) -> str:
    """`blip2-qformer` for LAVIS's files with a Q-Former that matches; empty for others."""
    speaks = {"opt_proj", "t5_proj", "llm_proj"} & parts
    matches = {"vision_proj", "text_proj", "itm_head"} & parts
    return "blip2-qformer" if "Qformer" in parts and matches and not speaks else ""
