"""`vlre_checksums.json`: sha256 of every file of a model or adapter that was written here.

Neither safetensors nor JSON notices a flipped bit: it would load, and give other numbers.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.strict_json import loads

CHECKSUMS = "vlre_checksums.json"


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Record the files of a directory; the last thing to be written into it.

    Args:
        folder: the directory.
        names: of the files in it that decide what the model does.
    """
    found = {name: _sha256(folder / name) for name in sorted(set(names))}
    text = json.dumps({"sha256": found}, indent=1, ensure_ascii=False)
    replace_file(folder / CHECKSUMS, text.encode() + b"\n")


def check_checksums(folder: Path) -> None:
    """Compare a directory's files with its record; directories without one pass.

    Raises:
        CheckpointInvalid: a file is missing or another one than was written.
    """
    if (folder / CHECKSUMS).is_file():
        states = ((file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file())
        _check(folder, tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in states))


@lru_cache(maxsize=32)
def _check(folder: Path, state: tuple[tuple[str, int, int, int], ...]) -> None:
    """As `check_checksums`; one look at each state of a directory is enough."""
    try:
        recorded = dict(loads((folder / CHECKSUMS).read_bytes())["sha256"].items())
        if not recorded:
            raise ValueError("it is empty")
        for name, expected in recorded.items():
            if name != Path(name).name:
                raise ValueError(f"{name!r} is no plain file name")
            if _sha256(folder / name) != expected:
                raise CheckpointInvalid(
                    f"{folder / name} is damaged or was changed: its sha256 is another than "
                    f"{CHECKSUMS} has",
                    hint=f"write or copy the directory again; if the change was meant, delete "
                    f"{CHECKSUMS}",
                )
    except FileNotFoundError as error:
        raise CheckpointInvalid(f"{error.filename} is missing", hint="copy it again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointInvalid(f"{folder / CHECKSUMS} cannot be read: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
