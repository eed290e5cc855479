"""The image side that all BLIP-2 encoders share: vision tower, queries, what is made of them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import Blip2Config

from retrieval_engine.models.blip2.parts import QueryPart, VisionPart, ln_vision_eps
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.device import coarse_float32
from retrieval_engine.models.dual_encoder import ImageEncoder
from retrieval_engine.models.loading import load_model
from retrieval_engine.models.preprocess import read_preprocessor
from retrieval_engine.records import Feature

Words = TypeVar("Words", bound=nn.Module)


class Blip2Images(ImageEncoder):
    """Features of images: `pooled` (h,), `tokens` (t, w), `queries` (q, h).

    The vision tower runs in `dtype`, the Q-Former in float32, as the checkpoints intend; each is
    loaded when it is first needed.

    Args:
        checkpoint: where the files are.
        config: its config.
        device: as in `models.open_encoder`.
        dtype: as in `models.open_encoder`.
    """

    queries_kind: type[QueryPart] = QueryPart

    def __init__(
        self, checkpoint: Checkpoint, config: Blip2Config, *, device: str, dtype: str
    ) -> None:
        super().__init__(checkpoint, device=device, dtype=dtype)
        self.config = config
        vision = config.vision_config
        self.preprocessor = read_preprocessor(checkpoint, vision.image_size)

    @property
    def tokens_per_image(self) -> int:
        """Patches of an image and the CLS token."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size) ** 2 + 1

    def autocast(self) -> AbstractContextManager[object]:
        """Nothing: each part has its own precision."""
        return nullcontext()

    @cached_property
    def vision(self) -> VisionPart:
        """The vision tower on the device."""
        loaded: VisionPart = load_model(VisionPart, self.checkpoint, dtype=self.dtype)
        loaded.to(self.device)
        return self.in_arithmetic(loaded)

    @cached_property
    def queries(self) -> Any:
        """The Q-Former, and what a retrieval checkpoint has beside it, on the device."""
        loaded = load_model(self.queries_kind, self.checkpoint, dtype=torch.float32)
        return loaded.to(self.device)

    def load_words(self, kind: type[Words]) -> Words:
        """A part of the language model on the device.

        Trap: T5 overflows in float16; it was trained in bfloat16.
        """
        t5 = self.config.text_config.model_type == "t5"
        dtype = torch.bfloat16 if t5 and self.dtype == torch.float16 else self.dtype
        return load_model(kind, self.checkpoint, dtype=dtype).to(self.device)

    def image_features(self) -> list[Feature]:
        """Those of images."""
        vision, qformer = self.config.vision_config, self.config.qformer_config
        looked = ("vision", "shared", "image")
        return [
            self.form("pooled", (qformer.hidden_size,), *looked),
            self.form("tokens", (self.tokens_per_image, vision.hidden_size), "vision"),
            self.form("queries", (self.config.num_query_tokens, qformer.hidden_size), *looked),
        ]

    def vision_tower(self, pixels: Tensor) -> Tensor:
        """See `ImageEncoder.vision_tower`."""
        states: Tensor = self.vision(pixels.to(self.dtype))
        return states

    def of_vision_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """What the Q-Former makes of the states.

        It is of float32 whatever the tower is of, and a quarter of the time on an H100 for that.
        """
        with coarse_float32(self.device, self.dtype):
            return self.of_queries(self.queries.query_states(states))

    def of_queries(self, states: Tensor) -> dict[str, Tensor]:
        """Features made of (n, q, h) query states, by name."""
        return {"queries": states, "pooled": states.mean(dim=1)}

    def tower_settings(self) -> list[object]:
        """Settings that shape the vision tower's arithmetic beyond its tensors' shapes."""
        vision = self.config.vision_config
        eps = [vision.layer_norm_eps, ln_vision_eps(self.config)]
        return [vision.num_attention_heads, *eps, vision.hidden_act]

    def qformer_settings(self) -> list[object]:
        """The same of the Q-Former."""
        qformer = self.config.qformer_config
        return [qformer.num_attention_heads, qformer.layer_norm_eps, qformer.hidden_act]
