"""Which device and which arithmetic a model runs in."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import UsageError
from retrieval_engine.machine import has_fast_bfloat16, has_int8_products
from retrieval_engine.models.preprocess import ImagePreprocessor

if TYPE_CHECKING:
    import torch


def pick_device(name: str, dtype: str = "auto") -> "torch.device":
    """The device of this name; `auto` is the first CUDA device, else the CPU.

    Args:
        name: as torch has it, or `auto`.
        dtype: arithmetic that `auto` looks for: int8 is for CPUs, and float8 not for every GPU.

    Raises:
        UsageError: the device is not on this machine.
    """
    import torch

    if name == "auto":
        has = torch.cuda.is_available() and dtype != "int8"
        has = has and (dtype != "float8" or _multiplies_float8(torch.device("cuda")))
        return torch.device("cuda" if has else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}; try auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).cpu()
        except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
            raise UsageError(
                f"device {name} is not here", hint="use device auto, cpu or cuda"
            ) from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(
            f"device {name} is not here; this machine has {count or 'no'} CUDA devices",
            hint="use `device='auto'` or `device='cpu'`",
        )
    return device


def pick_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """The arithmetic for `auto`, `float32`, `bfloat16`, `float16`, `float8` or `int8`.

    `auto` is float16 on CUDA, bfloat16 on a CPU with avx512_bf16 or AMX, else float32. With `int8`
    all is float32 but the linear layers of the vision tower, with `float8` all is bfloat16 but
    them; see `models.int8` and `models.float8`.

    Raises:
        UsageError: another name, `int8` on a device that is no CPU, or `float8` on a GPU without.
    """
    import torch

    known = {d: getattr(torch, d) for d in ("float32", "bfloat16", "float16")}
    if name == "float8" and device.type == "cuda" and not _multiplies_float8(device):
        card = torch.cuda.get_device_name(device)
        raise UsageError(
            f"`dtype` float8 needs a GPU such as H100 or L4, not {card}", hint="float16 is for it"
        )
    known["float8"] = torch.bfloat16
    if name == "int8" and device.type != "cpu":
        raise UsageError(f"`dtype` int8 is for a CPU, not for {device}", hint="float16 is for GPUs")
    known["int8"] = torch.float32
    if name in known:
        found: torch.dtype = known[name]
        return found
    if name != "auto":
        raise UsageError(f"unknown dtype {name!r}; known: auto, {', '.join(known)}")
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and is_fast_at_bfloat16() else torch.float32


def _multiplies_float8(device: "torch.device") -> bool:
    """Whether a GPU has products of float8: Ada, Hopper and what came after."""
    import torch

    return torch.cuda.get_device_capability(device) >= (8, 9)


def is_fast_at_bfloat16() -> bool:
    """Whether this machine's CPU has avx512_bf16 or AMX."""
    told = has_fast_bfloat16()
    if told is None:
        import torch

        told = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return told


def is_exact_at_int8() -> bool:
    """Whether this machine's CPU sums products of 8 bits without overflow."""
    told = has_int8_products()
    if told is None:
        import torch

        told = torch.cpu._is_vnni_supported()
    return told


def forbid_tf32(device: "torch.device", dtype: "torch.dtype") -> None:
    """Make float32 mean float32 on CUDA; cuDNN's convolutions round to TF32 otherwise."""
    import torch

    if device.type == "cuda" and dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")


def coarse_float32(device: "torch.device", dtype: "torch.dtype") -> AbstractContextManager[object]:
    """Let float32 products be of TF32 on CUDA where the rest of a model is of half precision.

    TF32's significand is float16's. Nothing elsewhere, or where `dtype` is float32.
    """
    import torch

    from retrieval_engine.metrics.pair_scores import float32_products

    is_half = device.type == "cuda" and dtype != torch.float32
    return float32_products("high") if is_half else nullcontext()


def autocast(device: "torch.device", dtype: "torch.dtype") -> AbstractContextManager[object]:
    """Half-precision arithmetic over float32 weights on a CPU; nothing elsewhere or in float32."""
    import torch

    if device.type == "cuda" or dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def on_device(array: NDArray[Any], device: "torch.device") -> "torch.Tensor":
    """An array on a device. On CUDA it goes through pinned memory, and nobody waits for it.

    Trap: a copy from pageable memory, of three numbers too, waits for all that the device has
    been given to do.
    """
    import torch

    x = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def normalized_pixels(
    pixels: NDArray[np.uint8], preprocessor: ImagePreprocessor, device: "torch.device"
) -> "torch.Tensor":
    """(n, s, s, 3) uint8 pixels -> (n, 3, s, s) float32, normalised, on the device."""
    mean, std = (
        on_device(np.array(numbers, dtype=np.float32), device)
        for numbers in (preprocessor.mean, preprocessor.std)
    )
    x = on_device(pixels, device)
    return ((x.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


class Collected:
    """Rows that a device computes part by part, copied back while it goes on with the next part.

    Args:
        rows: of all parts together.
    """

    def __init__(self, rows: int) -> None:
        self._rows, self._done = rows, 0
        self._found: dict[str, torch.Tensor] = {}
        self._device: torch.device | None = None

    def add(self, part: "Mapping[str, torch.Tensor]", rows: int) -> None:
        """The next rows, (`rows`, …) by name."""
        import torch

        for name, tensor in part.items():
            self._device = tensor.device
            if rows == self._rows and tensor.device.type == "cpu":
                self._found[name] = tensor
                continue
            if name not in self._found:
                shape, pinned = (self._rows, *tensor.shape[1:]), tensor.device.type == "cuda"
                self._found[name] = torch.empty(shape, dtype=tensor.dtype, pin_memory=pinned)
            some = self._found[name][self._done : self._done + rows]
            some.copy_(tensor, non_blocking=True)
        self._done += rows

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All rows by name, when the device is done with them."""
        import torch

        if self._device is not None and self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return {name: tensor.numpy() for name, tensor in self._found.items()}
