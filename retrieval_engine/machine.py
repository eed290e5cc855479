"""What this process finds on its machine and may use of it, on Linux, macOS and Windows."""

import os
import platform
import sys
from functools import cache
from pathlib import Path

from retrieval_engine.errors import UsageError

ONE_THREAD_PRODUCT = 2**18
"""Multiplications of one product that OpenBLAS, NumPy's own, does in the thread that asks. Others it
shares out; for one query waking its threads takes longer than the work, on busy cores fifty times."""


def usable_cores() -> int:
    """Cores that this process may run on; of a container or `taskset`, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_wanted(otherwise: int = 0) -> int:
    """Threads a large call may use: `OMP_NUM_THREADS`, else a number, else the cores there are."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdigit() and int(asked) > 0 else otherwise or usable_cores()


def devices_of(text: str) -> list[str]:
    """The devices that are meant, one for each model.

    Args:
        text: `all` (every CUDA device, else the CPU), or names separated by commas: `cuda:0`,
            `cuda` (the first), `cpu`, and `cpu:2` for two models on the CPU.

    Returns:
        Names as torch has them: `cuda:0,cpu:2` is `["cuda:0", "cpu", "cpu"]`.

    Raises:
        UsageError: something else is named, or nothing.
    """
    if text.strip() == "all":
        import torch

        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    found: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        kind, _, number = name.partition(":")
        if kind == "cuda" and (name == kind or number.isdecimal()):
            found.append(f"cuda:{int(number or 0)}")
        elif name == "cpu" or (kind == "cpu" and number.isdecimal() and int(number)):
            found += ["cpu"] * int(number or 1)
        else:
            raise UsageError(
                f"`devices` names {name!r}; known: all, cuda:0, cuda:1, …, cpu, and cpu:2 for two "
                "models on the CPU, separated by commas"
            )
    return found


def has_cuda_driver() -> bool:
    """Whether NVIDIA's driver is on this machine; torch need not be imported to know."""
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


@cache
def _told_of_cpu() -> str | None:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return None


def has_fast_bfloat16() -> bool | None:
    """Whether the CPU has avx512_bf16 or AMX; None where only torch could tell (no Linux)."""
    told = _told_of_cpu()
    return None if told is None else "avx512_bf16" in told or "amx_tile" in told


def has_int8_products() -> bool | None:
    """Whether the CPU sums products of 8 bits in 32: VNNI, or an Arm; None where torch could tell."""
    told = _told_of_cpu()
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    return None if told is None else "vnni" in told


def free_memory() -> int | None:
    """Bytes of memory that nobody uses, or None where the system does not tell without a library."""
    try:
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # Windows; macOS
        return None


def cache_folder() -> Path:
    """Where what can be made again may be kept: `VLRE_CACHE`, else the user's place for it."""
    if asked := os.environ.get("VLRE_CACHE"):
        return Path(asked)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "vlre"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/vlre").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlre"


def version_of(distribution: str) -> str:
    """Version of an installed distribution, or empty where it is not installed."""
    from importlib import metadata  # not at once: it takes longer to import than all of this module

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
