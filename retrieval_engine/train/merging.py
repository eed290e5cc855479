"""Writes a base with adapters merged into it as a checkpoint of its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from retrieval_engine.errors import CheckpointInvalid, TrainingError
from retrieval_engine.models.adapters import (
    Adapter,
    apply_adapter,
    module_of,
    read_adapter,
    resolve,
    with_adapter,
)
from retrieval_engine.models.learner import open_learner
from retrieval_engine.records import Json
from retrieval_engine.train.finetune.config import Task
from retrieval_engine.train.lora import base_name
from retrieval_engine.train.model_files import write_json, write_model


def merge_adapters(adapters: Sequence[Path], out: Path, *, base: str = "") -> Path:
    """Merge adapters, one after the other, into what they were trained on.

    Args:
        adapters: directories of adapters of one base; their changes are added up.
        out: directory of the new checkpoint.
        base: checkpoint; empty for the one that the first adapter names.

    Returns:
        `out`. Tensors that no adapter touches keep their bytes; the others are float32.

    Raises:
        CheckpointInvalid: an adapter cannot be read, or names no base.
        FingerprintMismatch: an adapter was trained on another base.
        TrainingError: `out` holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise TrainingError(f"{out} is not empty", hint="give another `out`")
    read = [read_adapter(path) for path in adapters]
    name = base or read[0].base
    if not name:
        raise CheckpointInvalid(
            f"the adapter in {read[0].path} does not say what it was trained on",
            hint="name it with `base=DIR`",
        )
    checkpoint = resolve(name)
    for adapter in read:
        with_adapter(checkpoint, adapter.path)
    modules = set().union(*(adapter.modules() for adapter in read))
    task = _task(modules)
    sees = any(module.startswith("vision_model.") for module in modules)
    plain = replace(checkpoint, adapter=None)
    learner = open_learner(plain, task, with_tower=sees, dtype=torch.float32)
    model = learner.model
    for adapter in read:
        _check_fits(adapter, {name for name, _ in model.named_modules()})
        model = apply_adapter(model, adapter.path)
    touched = {f"{module}.weight" for module in modules}
    for adapter in read:  # what is trained whole beside the low ranks has a bias too
        touched |= {f"{module_of(name)}.bias" for name in adapter.tensors() if _is_bias(name)}
    changed = {
        name: value.detach().float().clone()
        for name, value in model.state_dict().items()
        if name in touched
    }
    write_model(checkpoint.path, changed, out)
    tensors: list[Json] = [*sorted(changed)]
    record: dict[str, Json] = {
        "base": base_name(checkpoint),
        "adapters": [str(path) for path in adapters],
        "tensors": tensors,
    }
    write_json(out / "merged.json", record)
    return out


def _task(modules: set[str]) -> Task:
    writes = any(name.startswith(("text_decoder.", "language_")) for name in modules)
    return Task.CAPTION if writes else Task.RETRIEVAL


def _is_bias(name: str) -> bool:
    return name.endswith(".bias") and ".lora_" not in name


def _check_fits(adapter: Adapter, known: set[str]) -> None:
    if unknown := sorted(adapter.modules() - known):
        raise CheckpointInvalid(
            f"adapter {adapter.path} changes {unknown[0]}, which the base does not have",
            hint="merge adapters of one task and one base",
        )
