"""Where a run stands, on disk: written whole or not at all, and enough to go on exactly."""

from pathlib import Path
from typing import Any

import torch

from retrieval_engine.durable import replacing_file
from retrieval_engine.errors import CheckpointInvalid, TrainingError
from retrieval_engine.models.pickled import load_pickled


def save_atomically(value: Any, path: Path) -> None:
    """Write with `torch.save`; a crash leaves either the old file or the new one."""
    with replacing_file(path) as file:
        torch.save(value, file)


def load_checkpoint(path: Path, *, identity: str) -> dict[str, Any]:
    """What `save_atomically` wrote for this very run.

    Args:
        path: the file.
        identity: digest of the config and the data; must be the one it was saved under.

    Raises:
        TrainingError: there is none, it is damaged, or it belongs to another run.
    """
    if not path.is_file():
        raise TrainingError(
            f"nothing to resume: {path} is not there", hint="start without `resume`"
        )
    try:
        saved = load_pickled(path)
    except CheckpointInvalid as error:
        raise TrainingError(
            f"{path} is damaged, or holds more than tensors", hint="give another `out`"
        ) from error
    if not isinstance(saved, dict) or "identity" not in saved:
        raise TrainingError(f"{path} is none of ours", hint="give another `out`")
    if saved["identity"] != identity:
        raise TrainingError(
            f"{path} belongs to a run with other options or other data",
            hint="give the settings of the first run, or another `out`",
        )
    return saved
