"""Where products are made in bfloat16."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

_MANY_ROWS = 1000


def is_half_fast(x: Tensor) -> bool:
    """Whether the device is fast at bfloat16 and there are enough rows for it to matter.

    Args:
        x: (n, …) what products are made with.
    """
    fast = x.is_cuda or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return fast and len(x) > _MANY_ROWS


def half_precision(x: Tensor) -> AbstractContextManager[object]:
    """bfloat16 products where `is_half_fast`."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=is_half_fast(x))
