"""The image side that all BLIP-2 encoders share: vision tower, queries, what is made of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Blip2Config

from retrieval_engine.errors import UsageError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models.batching import default_batch_size, halve_on_oom
from retrieval_engine.models.blip2.parts import QueryPart, VisionPart, ln_vision_eps
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.device import (
    forbid_tf32,
    normalized_pixels,
    pick_device,
    pick_dtype,
)
from retrieval_engine.models.loading import load_model
from retrieval_engine.models.preprocess import read_preprocessor
from retrieval_engine.records import Feature, Modality


class Blip2Images(ABC):
    """Features of images: `pooled` (h,), `tokens` (t, w), `queries` (q, h).

    The vision tower runs in `dtype`, the Q-Former in float32, as the checkpoints intend; each is
    loaded when it is first needed.

    Args:
        checkpoint: where the files are.
        config: its config.
        device: as in `models.open_encoder`.
        dtype: as in `models.open_encoder`.
    """

    spec: EncoderSpec
    queries_kind: type[QueryPart] = QueryPart

    def __init__(
        self, checkpoint: Checkpoint, config: Blip2Config, *, device: str, dtype: str
    ) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        forbid_tf32(self.device, self.dtype)
        vision = config.vision_config
        self.preprocessor = read_preprocessor(checkpoint.path, vision.image_size)
        self.tokens_per_image = (vision.image_size // vision.patch_size) ** 2 + 1
        self.default_batch_size = default_batch_size(self.tokens_per_image, self.device.type)

    @cached_property
    def vision(self) -> VisionPart:
        """The vision tower on the device."""
        loaded: VisionPart = load_model(VisionPart, self.checkpoint, dtype=self.dtype)
        loaded.to(self.device)
        return loaded

    @cached_property
    def queries(self) -> Any:
        """The Q-Former, and what a retrieval checkpoint has beside it, on the device."""
        loaded = load_model(self.queries_kind, self.checkpoint, dtype=torch.float32)
        return loaded.to(self.device)

    def features(self, modality: Modality) -> dict[str, Feature]:
        """The features it can emit; see `Encoder.features`."""
        found = self.image_features() if modality is Modality.IMAGES else self.text_features()
        return {feature.name: feature for feature in found}

    def image_features(self) -> list[Feature]:
        """Those of images."""
        vision, qformer = self.config.vision_config, self.config.qformer_config
        tower = self.spec.part("vision")
        looked = self.spec.part("vision", "shared", "image")
        shapes = {
            "pooled": ((qformer.hidden_size,), looked),
            "tokens": ((self.tokens_per_image, vision.hidden_size), tower),
            "queries": ((self.config.num_query_tokens, qformer.hidden_size), looked),
        }
        return [
            Feature(name=name, shape=shape, dtype="float32", fingerprint=fingerprint)
            for name, (shape, fingerprint) in shapes.items()
        ]

    @abstractmethod
    def text_features(self) -> list[Feature]:
        """Those of captions."""

    @halve_on_oom
    @torch.inference_mode()
    def encode_images(
        self, pixels: NDArray[np.uint8], features: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Features of a batch of images; see `Encoder.encode_images`."""
        self.require(features, Modality.IMAGES)
        return self._of_states(self.vision_states(pixels), features)

    @torch.inference_mode()
    def encode_tokens(
        self, tokens: NDArray[Any], features: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Features of images whose states are known; see `ReadsTokens.encode_tokens`."""
        self.require(features, Modality.IMAGES)
        return self._of_states(torch.from_numpy(tokens).to(self.device), features)

    def _of_states(self, states: Tensor, features: Sequence[str]) -> dict[str, NDArray[Any]]:
        found: dict[str, Tensor] = {}
        if set(features) - {"tokens"}:
            found |= self.of_queries(self.queries.query_states(states))
        # NumPy knows float16, but no bfloat16.
        found["tokens"] = states if states.dtype == torch.float16 else states.float()
        return {name: found[name].cpu().numpy() for name in features}

    def of_queries(self, states: Tensor) -> dict[str, Tensor]:
        """Features made of (n, q, h) query states, by name."""
        return {"queries": states, "pooled": states.mean(dim=1)}

    @torch.inference_mode()
    def vision_states(self, pixels: NDArray[np.uint8]) -> Tensor:
        """(n, s, s, 3) uint8 pixels -> (n, t, w) states after the final norm, on the device."""
        x = normalized_pixels(pixels, self.preprocessor, self.device)
        states: Tensor = self.vision(x.to(self.dtype))
        return states

    def require(self, features: Sequence[str], modality: Modality) -> None:
        """Check that features can be emitted.

        Raises:
            UsageError: one cannot; the message lists those that can.
        """
        known = list(self.features(modality))
        if unknown := [name for name in features if name not in known]:
            raise UsageError(
                f"{self.checkpoint.name} emits no {', '.join(unknown)} for {modality}; "
                f"it has {', '.join(known)}",
                hint=self.hint(unknown),
            )

    def hint(self, unknown: Sequence[str]) -> str:
        """What to do about features that cannot be emitted."""
        return ""

    def tower_settings(self) -> list[object]:
        """Settings that shape the vision tower's arithmetic beyond its tensors' shapes."""
        vision = self.config.vision_config
        eps = [vision.layer_norm_eps, ln_vision_eps(self.config)]
        return [vision.num_attention_heads, *eps, vision.hidden_act]

    def qformer_settings(self) -> list[object]:
        """The same of the Q-Former."""
        qformer = self.config.qformer_config
        return [qformer.num_attention_heads, qformer.layer_norm_eps, qformer.hidden_act]
