"""What this process finds on its machine and may use of it, on Linux, macOS and Windows."""

import os
import sys
from importlib import metadata
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may run on; of a container or `taskset`, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_wanted() -> int:
    """Threads a large call may use: `OMP_NUM_THREADS`, else the cores of this process."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdigit() and int(asked) > 0 else usable_cores()


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
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
