"""Proof that the files of a store are what its manifest says."""

import hashlib
from pathlib import Path

from retrieval_engine.store.manifest import SHARDS, FileEntry, Manifest


def check_files(root: Path, manifest: Manifest) -> list[str]:
    """Hash every file the manifest lists; one line for each problem."""
    problems = (check_file(root, entry) for entry in manifest.files())
    return [problem for problem in problems if problem]


def check_file(root: Path, entry: FileEntry) -> str:
    """What is wrong with one file, or an empty string."""
    path = root / SHARDS / entry.name
    try:
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            return f"{path} has {size_bytes:,} bytes, the manifest says {entry.size_bytes:,}"
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if sha256 != entry.sha256:
        return f"{path} has sha256 {sha256[:12]}, the manifest says {entry.sha256[:12]}"
    return ""
