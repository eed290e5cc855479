"""float8 on a GPU of Hopper's kind: the linear layers of a vision tower multiply numbers of 8 bits.

Weights and inputs are rounded to e4m3 (Micikevicius et al., FP8 Formats for Deep Learning, 2022),
with a scale for each row of both, an input's found as it comes: nothing is calibrated, and a
picture's numbers do not depend on its neighbours. Products are bfloat16, as is all else. A CPU
computes the same, slowly, for whoever asks a question there.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLOAT8 = "float8"
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_TINIEST = 1e-12
_MULTIPLE = 16  # of both widths of a layer; any other stays as it is

Rounded = tuple[Tensor, Tensor]


def rounded_rows(x: Tensor) -> Rounded:
    """(m, k) floats -> (m, k) e4m3 and (m, 1) float32 scales; a row's largest is e4m3's."""
    x = x.float()
    scales = x.abs().amax(dim=1, keepdim=True).clamp(min=_TINIEST) / _LARGEST
    return (x / scales).to(torch.float8_e4m3fn), scales


class Float8Linear(nn.Module):
    """A linear layer in float8; it cannot be trained.

    Args:
        linear: whose weights it takes, rounded; both widths are multiples of 16.
        rounded: `rounded_rows`, or the same in one pass.
    """

    def __init__(self, linear: nn.Linear, rounded: Callable[[Tensor], Rounded]) -> None:
        super().__init__()
        self._rounded = rounded
        weight, scales = rounded_rows(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales.t().contiguous())
        bias: Tensor | None = linear.bias
        self.register_buffer("bias", None if bias is None else bias.detach().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        """(…, i) -> (…, o) bfloat16."""
        rows, scales = self._rounded(x.flatten(0, -2))
        weight, by_row = self.get_buffer("weight"), F.ScalingType.RowWise
        found: Tensor = F.scaled_mm(
            *(rows, weight.t(), scales, by_row, self.get_buffer("scales"), by_row),
            bias=self.bias if isinstance(self.bias, Tensor) else None,
            output_dtype=torch.bfloat16,
            use_fast_accum=x.is_cuda,
        )
        return found.view(*x.shape[:-1], -1)


def to_float8(tower: nn.Module) -> None:
    """Put float8 in the place of a tower's linear layers; the weights they had go."""
    device = next(tower.parameters()).device
    rounded = _in_one_pass() if device.type == "cuda" else rounded_rows
    for module in list(tower.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and not any(n % _MULTIPLE for n in child.weight.shape):
                setattr(module, name, Float8Linear(child, rounded))


def _in_one_pass() -> Callable[[Tensor], Rounded]:
    """`rounded_rows` by a kernel of Triton's, or as it is where there is no Triton."""
    try:
        from retrieval_engine.models import float8_kernel
    except ImportError:
        return rounded_rows
    return partial(float8_kernel.rounded_rows, largest=_LARGEST, tiniest=_TINIEST)
