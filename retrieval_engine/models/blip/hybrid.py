"""BLIP with a hybrid vision tower: a convolutional backbone in the place of the patch projection.

After Dosovitskiy et al. 2021, section 3.1. `vision_config.backbone = {"name": …}` asks for it; all
else is BLIP. The mean of the backbone's states, mapped by a linear layer, joins the CLS state
before the last LayerNorm, so that what a small transformer has not learned is still there.

Trap: `patch_size` of such a config is only what makes `image_size // patch_size` the side of the
backbone's grid; no pixel is cut by it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.blip.modeling_blip import BlipEncoder, BlipPreTrainedModel

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.blip.backbone import HEAD_CHANNELS, SCALES, EfficientNetLite
from retrieval_engine.models.blip.onnx_backbone import OnnxBackbone, is_installed
from retrieval_engine.models.blip.settings import decoder_twin, shares_decoder, stated
from retrieval_engine.models.checkpoint import Checkpoint, read_config
from retrieval_engine.models.loading import load_model


def backbone_name(vision_config: Any) -> str:
    """Name of the backbone that a BLIP's vision config asks for, or empty.

    Args:
        vision_config: transformers' object, or the part of a config.json.

    Raises:
        CheckpointInvalid: a backbone that is not known.
    """
    name = stated(stated(vision_config, "backbone") or {}, "name")
    if not name:
        return ""
    if name not in SCALES:
        raise CheckpointInvalid(
            f"unknown backbone {name!r} in vision_config", hint=f"known: {', '.join(SCALES)}"
        )
    return str(name)


class HybridEmbeddings(nn.Module):
    """Backbone states to tokens: (n, p, c) -> (n, 1 + p, w), CLS first."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, places = config.hidden_size, (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embedding = nn.Linear(HEAD_CHANNELS, width)
        self.position_embedding = nn.Parameter(torch.zeros(1, places + 1, width))

    def forward(self, states: Tensor, places: Tensor | None = None) -> Tensor:
        """Tokens of backbone states.

        Args:
            states: (n, p, c).
            places: (n, p) which of the grid's places they are; None for all in order.
        """
        positions = self.position_embedding
        first = (self.class_embedding + positions[:, :1]).expand(states.shape[0], -1, -1)
        where = positions[:, 1:] if places is None else positions[0, 1:][places]
        return torch.cat([first, self.patch_embedding(states) + where], dim=1)


class HybridVisionModel(BlipPreTrainedModel):  # type: ignore[misc]
    """`BlipVisionModel` that begins with a frozen backbone; same names where the parts are the same."""

    main_input_name = "pixel_values"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        backbone = EfficientNetLite(backbone_name(config)).requires_grad_(False)
        self.backbone: nn.Module = backbone
        self.embeddings = HybridEmbeddings(config)
        self.encoder = BlipEncoder(config)
        self.mean_projection = nn.Linear(HEAD_CHANNELS, config.hidden_size)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """(n, 3, s, s) normalised pixels -> `last_hidden_state` (n, 1 + p, w).

        On a CPU the backbone computes in float32, whatever the rest does.
        """
        if pixel_values.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                states = self.backbone(pixel_values.float())
        else:
            states = self.backbone(pixel_values.to(self.post_layernorm.weight.dtype))
        return BaseModelOutput(last_hidden_state=self.see(states))

    def quicken(self) -> None:
        """Run the backbone through ONNX Runtime where that is installed and may be used.

        That is on a CPU, for encoding: nothing is trained through it.
        """
        on_cpu = self.post_layernorm.weight.device.type == "cpu"
        if on_cpu and is_installed() and isinstance(self.backbone, EfficientNetLite):
            self.backbone = OnnxBackbone(self.backbone)
        elif on_cpu:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def see(self, states: Tensor, places: Tensor | None = None) -> Tensor:
        """Tokens after the final LayerNorm from backbone states.

        Args:
            states: (n, p, c) floats from `backbone`.
            places: (n, p) which of the grid's places they are; None for all in order.

        Returns:
            (n, 1 + p, w).
        """
        tokens = self.encoder(inputs_embeds=self.embeddings(states, places)).last_hidden_state
        first = tokens[:, :1] + self.mean_projection(states.mean(1, keepdim=True))
        found: Tensor = self.post_layernorm(torch.cat([first, tokens[:, 1:]], dim=1))
        return found

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


def decoder_from_encoder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint, with the encoder's under the decoder's names that are not there."""
    filled = dict(tensors)
    for name, tensor in tensors.items():
        if twin := decoder_twin(name):
            filled.setdefault(twin, tensor)
    return filled
