"""int8 on a CPU: the linear layers of a vision tower multiply whole numbers (oneDNN's kernels).

Weights have a scale for each row, and an input has one for each picture, found as it comes: nothing
is calibrated (dynamic quantisation; the arithmetic is that of Jacob et al., CVPR 2018). Attention,
norms and everything behind the tower stay in float32.

Traps: a batch has one scale, so that a picture's numbers would depend on its neighbours: pictures go
through alone, which costs a CPU nothing. Inputs have 7 bits: with 8, sums overflow on a CPU without
VNNI, and two machines differ.
"""

from typing import Any

import torch
from torch import Tensor, nn

INT8 = "int8"
_TOP = 127
_TINIEST = 1e-12


class Int8Linear(nn.Module):
    """A linear layer in whole numbers; it cannot be trained.

    Args:
        linear: whose weights it takes, rounded.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self._scales = weight.abs().amax(dim=1).clamp(min=_TINIEST) / _TOP
        self._zeros = torch.zeros(len(weight), dtype=torch.long)
        rounded = (weight / self._scales[:, None]).round().to(torch.int8)
        bias: Tensor | None = linear.bias
        self._bias = None if bias is None else bias.detach().float()
        onednn: Any = torch.ops.onednn
        self._packed, self._multiply = (
            onednn.qlinear_prepack(rounded, None),
            onednn.qlinear_pointwise,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(…, i) -> (…, o) float32."""
        low, high = (float(end) for end in x.aminmax())
        scale = max(max(high, 0.0) - min(low, 0.0), _TINIEST) / _TOP
        zero = round(-min(low, 0.0) / scale)
        given = (x / scale).round_().add_(zero).clamp_(0, _TOP).to(torch.uint8)
        found: Tensor = self._multiply(
            *(given.flatten(0, -2), scale, zero),
            *(self._packed, self._scales, self._zeros, self._bias),
            *(1.0, 0, torch.float32, "none", [], ""),  # what comes of it is not rounded again
        )
        return found.view(*x.shape[:-1], -1)


def to_int8(tower: nn.Module) -> None:
    """Put whole numbers in the place of a tower's linear layers; the float weights go."""
    for module in list(tower.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
