"""BLIP with a hybrid vision tower: a convolutional backbone in the place of the patch projection.

After Dosovitskiy et al. 2021, section 3.1. `vision_config.backbone = {"name": …}` asks for it,
`"stages": […]` in it for earlier states beside the last (see `EfficientNetLite`); all else is BLIP.
The mean of the backbone's states, mapped by a linear layer, joins the CLS state before the last
LayerNorm, so that what a small transformer has not learned is still there.

Trap: `patch_size` of such a config is only what makes `image_size // patch_size` the side of the
backbone's grid; no pixel is cut by it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.blip.modeling_blip import BlipEncoder, BlipPreTrainedModel

from retrieval_engine.models.blip.attention import use_fused_attention
from retrieval_engine.models.blip.hybrid_tower import HybridTower, backbone_name
from retrieval_engine.models.blip.settings import decoder_from_encoder, shares_decoder
from retrieval_engine.models.checkpoint import Checkpoint, read_config
from retrieval_engine.models.loading import load_model, load_tokenizer


class HybridVisionModel(BlipPreTrainedModel, HybridTower):  # type: ignore[misc]
    """`BlipVisionModel` that begins with a frozen backbone; same names where the parts are the same."""

    main_input_name = "pixel_values"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.add_parts(config, BlipEncoder(config))
        self.post_init()  # type: ignore[operator]

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """(n, 3, s, s) normalised pixels -> `last_hidden_state` (n, 1 + p, w)."""
        return BaseModelOutput(last_hidden_state=self.states_of(pixel_values))

    def get_input_embeddings(self) -> nn.Module:
        """The patch projection, as in `BlipVisionModel`."""
        return self.embeddings


class HybridImageTextRetrieval(BlipForImageTextRetrieval):  # type: ignore[misc]
    """`BlipForImageTextRetrieval` with a hybrid vision tower."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = HybridVisionModel(config.vision_config)


class HybridConditionalGeneration(BlipForConditionalGeneration):  # type: ignore[misc]
    """`BlipForConditionalGeneration` with a hybrid vision tower."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = HybridVisionModel(config.vision_config)


def load_retrieval(checkpoint: Checkpoint, *, dtype: torch.dtype, quantize: str = "") -> Any:
    """`BlipForImageTextRetrieval`, with a hybrid tower where the checkpoint has one."""
    hybrid = backbone_name(read_config(checkpoint.path).get("vision_config"))
    kind = HybridImageTextRetrieval if hybrid else BlipForImageTextRetrieval
    return load_model(kind, checkpoint, dtype=dtype, quantize=quantize)


def load_captioning(checkpoint: Checkpoint, *, dtype: torch.dtype, quantize: str = "") -> Any:
    """`BlipForConditionalGeneration`, with a hybrid tower where the checkpoint has one."""
    hybrid = backbone_name(read_config(checkpoint.path).get("vision_config"))
    kind = HybridConditionalGeneration if hybrid else BlipForConditionalGeneration
    return load_decoder(kind, checkpoint, dtype=dtype, quantize=quantize)


def load_decoder(
    kind: type[Any], checkpoint: Checkpoint, *, dtype: torch.dtype, quantize: str = ""
) -> Any:
    """A model of a class with `text_decoder`.

    What the file holds once for both text towers, the decoder takes from the encoder.
    """
    fill = decoder_from_encoder if shares_decoder(read_config(checkpoint.path)) else None
    return load_model(kind, checkpoint, dtype=dtype, quantize=quantize, fill=fill)


def with_words(model: Any, checkpoint: Checkpoint) -> tuple[Any, BertTokenizer]:
    """A loaded model with fused attention, and its tokenizer."""
    use_fused_attention(model)
    rows = model.config.text_config.vocab_size
    return model, load_tokenizer(BertTokenizer, checkpoint, rows=rows)
