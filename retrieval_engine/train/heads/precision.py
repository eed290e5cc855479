"""Where products are made in bfloat16."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

_MANY_ROWS = 1000


def half_precision(x: Tensor) -> AbstractContextManager[object]:
    """bfloat16 products where the device is fast at them and there are enough rows to matter.

    Args:
        x: (n, …) what the products are made with.
    """
    fast = x.is_cuda or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(x.device.type, torch.bfloat16, enabled=fast and len(x) > _MANY_ROWS)
