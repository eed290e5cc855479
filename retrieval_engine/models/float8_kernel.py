"""`float8.rounded_rows` on CUDA in one pass over memory; needs Triton, which torch for CUDA brings.

As torch's own operations it takes longer than what the products of 8 bits save.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _round(
    x: Any, rows: Any, scales: Any, width: Any, largest: Any, tiniest: Any, size: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, size)
    inside = places < width
    numbers = tl.load(x + row * width + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(numbers), axis=0), tiniest) / largest
    tl.store(rows + row * width + places, (numbers / scale).to(tl.float8e4nv), mask=inside)
    tl.store(scales + row, scale)


def rounded_rows(x: Tensor, largest: float, tiniest: float) -> tuple[Tensor, Tensor]:
    """(m, k) floats -> (m, k) e4m3 and (m, 1) float32 scales, no scale below `tiniest / largest`."""
    x = x.contiguous()
    rows = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    size = triton.next_power_of_2(x.shape[1])
    with torch.cuda.device(x.device):
        _round[len(x),](*(x, rows, scales, x.shape[1], largest, tiniest, size), num_warps=_WARPS)
    return rows, scales
