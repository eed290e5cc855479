"""What was added to a store after some time, if nothing else happened to it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from retrieval_engine import arrow as pc
from retrieval_engine.store.items import read_items
from retrieval_engine.store.manifest import FileKind, Manifest


def added_since(root: Path, manifest: Manifest, files: Sequence[str]) -> Manifest | None:
    """The parts behind some files; None where other files are before them, or items were removed.

    Args:
        root: directory of the store.
        manifest: what exists now.
        files: sha256 of each file there was, in order.
    """
    known = [entry.sha256 for entry in manifest.files()]
    ends = np.cumsum([0, *(len(part.files) for part in manifest.parts)]).tolist()
    if known[: len(files)] != list(files) or len(files) not in ends:
        return None
    newer = replace(manifest, parts=manifest.parts[ends.index(len(files)) :])
    for entry in newer.files(FileKind.ITEMS):
        if pc.any(read_items(root, entry, ["removed"])["removed"]).as_py():
            return None
    return newer
