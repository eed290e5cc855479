"""Golden outputs of the authors' own BLIP and LAVIS code; `trim.py` says where they are from.

`GOLDEN[name]` for name in (`blip`, `blip2`) gives arrays by the names and shapes below; all are
float32 numbers of tiny random checkpoints on the pictures in `IMAGES` and the captions in
`expected["raw_captions"]`, of which caption j belongs to image `txt2img[j]`.

Both: pixel_values (12, 3, s, s), input_ids and attention_mask (20, 35), image_embeds (12, 32) or
(12, 32, 32), text_embeds (20, 32), itc_sim (12, 20), score_{i2t,t2i}_{k8,k12} (itm logit + itc,
-100 where not scored), score_full (12, 20).
BLIP: vision_last_hidden_state (12, 17, 48), text_last_hidden_state (20, 35, 64), itm_logits_enc and
itm_logits_cls (12, 20, 2), image_embeds_96, pos_embed_96, itc_sim_96 (at 96 pixels), lm_* and gen_*
(from caption.pth; settings in expected["generation"]).
BLIP-2: vision_ln_hidden_state (12, 17, 48), query_output (12, 32, 64), text_cls (20, 64),
itm_logit_pos (12, 20), itm_logits_len32 (12, 20, 2), multimodal_embeds (20, 32, 64).

Tolerances (absolute, float32; what another BLAS may move): hidden states, logits, lm losses and
scores 1e-4; embeddings, cosines and probabilities 1e-5; ids and pixels exact. Where a wrong eps is
to be caught: 5e-6 on embeddings and 1e-5 on vision states.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval_engine.models.import_checkpoint import import_checkpoint

HERE = Path(__file__).parent
VOCAB = HERE / "vocab.txt"
IMAGES = sorted((HERE / "images").glob("*.png"))
CHECKPOINTS = {
    "blip/retrieval": HERE / "blip" / "retrieval.pth",
    "blip/caption": HERE / "blip" / "caption.pth",
    "blip2": HERE / "blip2" / "blip2_retrieval.pth",
}


@dataclass(frozen=True)
class Golden:
    """What the authors' code gave for one family."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        with np.load(self.folder / "arrays.npz") as arrays:
            return dict(arrays)

    @cached_property
    def expected(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / "expected.json").read_text())
        return value

    @property
    def captions(self) -> list[str]:
        """The 20 captions as people wrote them."""
        return list(self.expected["raw_captions"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]


GOLDEN = {name: Golden(HERE / name) for name in ("blip", "blip2")}


def images() -> list[Image.Image]:
    """The 12 pictures, RGB."""
    return [Image.open(file).convert("RGB") for file in IMAGES]


def import_golden(name: str, out: Path, *, image_size: int | None = None) -> Path:
    """Import one of `CHECKPOINTS` into the directory `out`, which is given back."""
    config = GOLDEN[name.split("/")[0]].config
    import_checkpoint(CHECKPOINTS[name], out, config=config, vocab=VOCAB, image_size=image_size)
    return out
