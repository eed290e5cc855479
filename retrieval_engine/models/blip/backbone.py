"""EfficientNet-Lite, a convolutional backbone in the place of BLIP's patch projection."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
BATCH_NORM_EPSILON = 1e-3
# repeats, kernel, stride, expansion, channels: MobileNetV2's blocks as EfficientNet-B0 stacks them
# (Tan and Le 2019, table 1), without squeeze-and-excitation and with ReLU6: the Lite variant.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How a member of the family is wider and deeper than the first, and its picture size."""

    width: float
    depth: float
    image_size: int


SCALES = {
    "efficientnet-lite0": Scale(width=1.0, depth=1.0, image_size=224),
    "efficientnet-lite1": Scale(width=1.0, depth=1.1, image_size=240),
    "efficientnet-lite2": Scale(width=1.1, depth=1.2, image_size=260),
}


def are_stages(asked: object) -> bool:
    """Whether something is a list of rising numbers of rows of `STAGES`."""
    return isinstance(asked, list | tuple) and [*asked] == [
        n for n in range(len(STAGES)) if n in asked
    ]


class Convolution(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: the odd pixel goes to the right and below."""

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', ceil(h / stride), ceil(w / stride))."""
        left, right = same_padding(pictures.shape[-1], self.kernel_size[0], self.stride[0])
        above, below = same_padding(pictures.shape[-2], self.kernel_size[0], self.stride[0])
        if left != right or above != below:
            pictures = F.pad(pictures, (left, right, above, below))
            left = above = 0
        return F.conv2d(
            pictures, self.weight, self.bias, self.stride, (above, left), groups=self.groups
        )


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after a side of `size` pixels for TensorFlow's "SAME" padding."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Block(nn.Module):
    """An inverted residual block (Sandler et al. 2018): widen, filter by channel, narrow."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.expand = Convolution(inside, wide, 1) if expansion > 1 else None
        self.depthwise = Convolution(inside * expansion, wide, kernel, stride, groups=wide)
        self.project = Convolution(wide, outside, 1)
        self.residual = stride == 1 and inside == outside

    def forward(self, states: Tensor) -> Tensor:
        """(n, inside, h, w) -> (n, outside, h', w')."""
        wide = states if self.expand is None else F.relu6(self.expand(states))
        narrow: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return narrow + states if self.residual else narrow


class EfficientNetLite(nn.Module):
    """Backbone without its classifier; batch norms are folded into the convolutions.

    What it was trained to name, its last states say; colours, textures and small things they have
    mostly forgotten. `stages` joins to them what earlier stages see, averaged to the same grid.

    Args:
        name: in `SCALES`.
        stages: numbers of rows of `STAGES`, rising.

    Attributes:
        stages: those joined.
        joined: how many times finer than the last states' grid that of each one's last block is,
            by the block's number.
        channels: of the states: 1280, and those of each stage behind them.

    The trap: its pixels are `(x - 127) / 128`, not ImageNet's mean and spread by channel, and its
    padding depends on the picture's size, so that states of another size are other states.
    """

    def __init__(self, name: str, stages: Sequence[int] = ()) -> None:
        super().__init__()
        scale = SCALES[name]
        self.stages, self.channels = tuple(stages), HEAD_CHANNELS
        self.stem = Convolution(3, STEM_CHANNELS, 3, 2)
        blocks: list[Block] = []
        ends: list[int] = []
        inside = STEM_CHANNELS
        for number, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
            scaled = number not in (0, len(STAGES) - 1)  # Lite keeps the first and last stage
            outside = rounded_channels(channels * scale.width)
            for repeat in range(math.ceil(repeats * scale.depth) if scaled else repeats):
                blocks.append(Block(inside, outside, kernel, 1 if repeat else stride, expansion))
                inside = outside
            if number in self.stages:
                ends.append(len(blocks) - 1)
                self.channels += outside
        self.blocks = nn.ModuleList(blocks)
        self.joined: dict[int, int] = {}
        for end in ends:
            self.joined[end] = math.prod(block.depthwise.stride[0] for block in blocks[end + 1 :])
        self.head = Convolution(inside, HEAD_CHANNELS, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 3, s, s) pixels as `(x - 127) / 128` -> (n, places, channels) states, row by row."""
        states = F.relu6(self.stem(pictures.contiguous(memory_format=torch.channels_last)))
        joined = []
        for number, block in enumerate(self.blocks):
            states = block(states)
            if number in self.joined:
                joined.append(F.avg_pool2d(states, self.joined[number], ceil_mode=True))
        found = torch.cat([F.relu6(self.head(states)), *joined], dim=1)
        return found.flatten(2).transpose(1, 2)


def rounded_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, never more than a tenth below it."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def folded(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights (with batch norms and classifier) as those of `EfficientNetLite`.

    Args:
        published: state dict in the layout of `efficientnet_lite_pytorch` (lukemelas' layout).

    Returns:
        float32 weights and biases: `w · g / sqrt(v + e)` and `b - m · g / sqrt(v + e)`.

    Raises:
        KeyError: a convolution has no batch norm beside it.
    """
    weights: dict[str, Tensor] = {}
    for ours, convolution, norm in published_names(published):
        scale = published[f"{norm}.weight"] * torch.rsqrt(
            published[f"{norm}.running_var"].double() + BATCH_NORM_EPSILON
        )
        kernel = published[f"{convolution}.weight"].double() * scale[:, None, None, None]
        bias = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
        weights[f"{ours}.weight"], weights[f"{ours}.bias"] = kernel.float(), bias.float()
    return weights


def published_names(published: Mapping[str, Tensor]) -> list[tuple[str, str, str]]:
    """(our name, published convolution, its batch norm) of every convolution of a state dict."""
    names = [("stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")]
    parts = {"_expand_conv": ("expand", 0), "_depthwise_conv": ("depthwise", 1)}
    parts["_project_conv"] = ("project", 2)
    for key in published:
        if key.startswith("_blocks.") and key.endswith("_conv.weight"):
            block, convolution = key.removesuffix(".weight").rsplit(".", 1)
            ours, norm = parts[convolution]
            names.append(
                (
                    f"{block.removeprefix('_')}.{ours}",
                    f"{block}.{convolution}",
                    f"{block}._bn{norm}",
                )
            )
    return names
