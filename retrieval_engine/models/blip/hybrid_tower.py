"""What a hybrid vision tower adds to BLIP's, without transformers; `hybrid.py` says what it is."""

from typing import Any

import torch
from torch import Tensor, nn

from retrieval_engine.errors import CheckpointInvalid, MissingExtra, UsageError
from retrieval_engine.models.blip.backbone import SCALES, STAGES, EfficientNetLite, are_stages
from retrieval_engine.models.blip.int8_backbone import known_ranges
from retrieval_engine.models.blip.onnx_backbone import OnnxBackbone, is_installed
from retrieval_engine.models.blip.settings import stated
from retrieval_engine.models.device import is_exact_at_int8
from retrieval_engine.models.dual_encoder import ImageEncoder
from retrieval_engine.models.float8 import FLOAT8
from retrieval_engine.models.int8 import INT8


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


def new_backbone(vision_config: Any) -> EfficientNetLite:
    """The backbone that a BLIP's vision config asks for, with random weights.

    Raises:
        CheckpointInvalid: it is not known, or joins stages that it has not.
    """
    asked = stated(stated(vision_config, "backbone"), "stages") or []
    if not are_stages(asked):
        raise CheckpointInvalid(
            f"backbone.stages in vision_config is {asked!r}",
            hint=f"rising numbers from 0 to {len(STAGES) - 1}",
        )
    return EfficientNetLite(backbone_name(vision_config), asked)


class HybridEmbeddings(nn.Module):
    """Backbone states to tokens: (n, p, channels) -> (n, 1 + p, w), CLS first."""

    def __init__(self, config: Any, channels: int) -> None:
        super().__init__()
        width, places = config.hidden_size, (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embedding = nn.Linear(channels, width)
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


class HybridTower(nn.Module):
    """Parts and arithmetic of the tower; a subclass has an `encoder` besides, and `forward`."""

    backbone: nn.Module
    encoder: Any

    def add_parts(self, config: Any, encoder: nn.Module) -> None:
        """Set the modules, as the last step of a subclass's `__init__`."""
        backbone = new_backbone(config).requires_grad_(False)
        self.backbone = backbone
        self.embeddings = HybridEmbeddings(config, backbone.channels)
        self.encoder = encoder
        self.mean_projection = nn.Linear(backbone.channels, config.hidden_size)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def states_of(self, pixel_values: Tensor) -> Tensor:
        """(n, 3, s, s) normalised pixels -> (n, 1 + p, w).

        On a CPU the backbone computes in float32, whatever the rest does.
        """
        if pixel_values.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                states = self.backbone(pixel_values.float())
        else:
            states = self.backbone(pixel_values.to(self.post_layernorm.weight.dtype))
        return self.see(states)

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


def quicken(owner: ImageEncoder, model: Any) -> None:
    """Make a model's vision tower as quick as it can be for encoding.

    Raises:
        UsageError: float8 is asked of a backbone, or int8 of one whose ranges are not known, or on
            a CPU without VNNI.
        MissingExtra: int8 is asked of a backbone, and ONNX Runtime is not installed.
    """
    tower = model.vision_model
    if not isinstance(tower, HybridTower):
        owner.in_arithmetic(tower)
    elif owner.arithmetic == INT8:
        tower.backbone = _in_int8(owner, tower.backbone)
        owner.most_images = 1 << 30  # its scales do not depend on the batch
    elif owner.arithmetic == FLOAT8:
        raise UsageError(
            f"{owner.checkpoint.name} sees through convolutions, which float8 makes no faster",
            hint="leave `dtype` at auto",
        )
    else:
        tower.quicken()


def _in_int8(owner: ImageEncoder, backbone: Any) -> OnnxBackbone:
    if not is_installed():
        raise MissingExtra("onnxruntime", "cpu")
    if not is_exact_at_int8():
        raise UsageError(
            f"{owner.checkpoint.name} in int8 needs a CPU with VNNI: without it sums overflow",
            hint="leave `dtype` at auto",
        )
    ranges = known_ranges(backbone)
    if ranges is None:
        raise UsageError(
            f"int8 knows no ranges for the backbone of {owner.checkpoint.name}: its weights are not "
            "those that were published",
            hint="leave `dtype` at auto",
        )
    return OnnxBackbone(backbone, ranges)
