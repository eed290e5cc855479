"""Writes what every checkpoint of ours holds: weights beside a config.json, and JSON files."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_engine.durable import replace_file, writing
from retrieval_engine.records import Json

if TYPE_CHECKING:
    import torch


def write_json(path: Path, value: Mapping[str, Json]) -> None:
    """Write a JSON object for people and programs, whole or not at all.

    Raises:
        StoreError: the disk refuses.
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(path, text.encode() + b"\n")


def write_weights(tensors: "Mapping[str, torch.Tensor]", folder: Path) -> None:
    """Write model.safetensors beside a config.json.

    Raises:
        OSError: the disk refuses.
    """
    from safetensors.torch import save_file

    weights = folder / "model.safetensors"
    with writing(weights):
        save_file(_separate(tensors), weights, {"format": "pt"})
    # safetensors leaves its files readable by their owner alone.
    shutil.copymode(folder / "config.json", weights)


def _separate(tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors, contiguous, and none sharing its memory with another: safetensors' terms."""
    separate, seen = {}, set()
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous()
        storage = whole.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != whole.nbytes:
            whole = whole.clone()
        seen.add(storage.data_ptr())
        separate[name] = whole
    return separate
