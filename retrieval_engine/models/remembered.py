"""Hashes of the tensors in large weight files, kept from one start of a process to the next.

ViT-B's 900 MB take half a second to hash, at every start. A file whose size, times and inode are
what they were has the hashes it had: `ctime` moves with each write and nobody can set it back.
They lie in the user's cache (`VLRE_CACHE`), where losing them costs that half second.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import StoreError
from retrieval_engine.machine import cache_folder
from retrieval_engine.strict_json import loads

_LARGE_BYTES = 64 << 20
_SETTLED_S = 2.0  # a file that was just written may be written again within one tick of its clock


def recalled(file: Path) -> dict[str, str]:
    """sha256 by name of the tensors that were hashed in this very state of the file."""
    state = _state(file)
    if state is None:
        return {}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = loads(_place(file).read_bytes())
        if kept["state"] == state:
            return {str(name): str(value) for name, value in kept["tensors"].items()}
    return {}


def remember(file: Path, tensors: Mapping[str, str]) -> None:
    """Keep the hashes of a large file's tensors, where the cache can be written."""
    state = _state(file)
    if state is None or time.time() - max(state[1:3]) / 1e9 < _SETTLED_S:
        return
    kept = {"file": str(file.resolve()), "state": state, "tensors": dict(tensors)}
    with suppress(OSError, StoreError):
        _place(file).parent.mkdir(parents=True, exist_ok=True)
        replace_file(_place(file), json.dumps(kept).encode())


def _state(file: Path) -> list[int] | None:
    """What changes when the file does; None for a small one, which is hashed at once."""
    found = file.stat()
    if found.st_size < _LARGE_BYTES:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _place(file: Path) -> Path:
    name = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]
    return cache_folder() / "weights" / f"{name}.json"
