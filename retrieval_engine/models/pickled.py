"""Files that `torch.save` wrote, read without running what is in them."""

import argparse
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from retrieval_engine.errors import CheckpointInvalid

_TORN = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    struct.error,
    zipfile.BadZipFile,
)
_TORN_HINT = "the file is cut or damaged: download or copy it again"


def load_pickled(file: Path) -> Any:
    """What `torch.save` wrote: tensors in plain containers; anything else is refused, not run.

    Raises:
        CheckpointInvalid: it is damaged, or holds more than tensors.
    """
    zipped = zipfile.is_zipfile(file)
    try:
        if zipped:
            _check_sums(file)
        # The old format (before torch 1.6) is one pickle stream and cannot be mapped.
        with torch.serialization.safe_globals([argparse.Namespace]):  # of a run's options
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointInvalid(
                f"{file} holds more than tensors ({found.group(1)})",
                hint="its code is not run; if you trust the file, save its state dict alone, "
                "where it comes from: torch.save({'model': checkpoint['model']}, FILE)",
            ) from error
        raise CheckpointInvalid(f"{file} is no PyTorch checkpoint", hint=_TORN_HINT) from error
    except _TORN as error:
        reason = re.split(r"\.\s|\n", str(error))[0]  # torch adds paragraphs of advice
        raise CheckpointInvalid(
            f"{file} cannot be read ({type(error).__name__}: {reason})", hint=_TORN_HINT
        ) from error


def _check_sums(file: Path) -> None:
    """Compare each record with its checksum; a mapped load never looks at it."""
    with zipfile.ZipFile(file) as archive:
        if torn := archive.testzip():
            raise zipfile.BadZipFile(f"{torn} does not agree with its checksum")
