"""What every benchmark says beside its figures: which code, which machine, which versions."""

import json
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

LIBRARIES = (
    "torch",
    "transformers",
    "numpy",
    "h5py",
    "faiss-cpu",
    "faiss-gpu",
    "pymilvus",
    "milvus-lite",
)


@cache
def conditions() -> dict[str, object]:
    """Commit, hardware and versions of this run."""
    return {
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: v for name in LIBRARIES if (v := _version(name))},
    }


def emit(benchmark: str, **figures: object) -> None:
    """Print one result as a JSON line."""
    print(json.dumps({"benchmark": benchmark, **figures, **conditions()}), flush=True)


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    here = Path(__file__).parent
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=here)
    return found.stdout.strip() or "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""
