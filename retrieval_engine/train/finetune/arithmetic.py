"""The context of a forward pass."""

from contextlib import AbstractContextManager

import numpy as np
import torch

from retrieval_engine.models.device import pick_dtype


class Arithmetic:
    """The context of a forward pass: autocast, and random numbers that step and place decide.

    Args:
        device: where it runs.
        dtype: under autocast; float32 switches it off.
        seed: of dropout.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self._device, self._dtype, self._seed = device, dtype, seed

    def __call__(self, step: int, place: int) -> AbstractContextManager[object]:
        """For a forward pass that can be repeated exactly."""
        state = np.random.SeedSequence((self._seed, step, place)).generate_state(1)
        torch.manual_seed(int(state[0]))
        return self.plain()

    def plain(self) -> AbstractContextManager[object]:
        """Autocast alone."""
        enabled = self._dtype != torch.float32
        return torch.autocast(
            self._device.type, self._dtype if enabled else torch.bfloat16, enabled=enabled
        )


def training_dtype(name: str, device: torch.device) -> torch.dtype:
    """As `pick_dtype`, but `auto` is bfloat16 on CUDA: float16 needs its losses scaled."""
    if name == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return pick_dtype(name, device)
