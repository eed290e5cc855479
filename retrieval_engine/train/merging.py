"""Writes a base with adapters merged into it as a checkpoint of its own."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from retrieval_engine.errors import CheckpointInvalid, TrainingError
from retrieval_engine.models.adapter_layers import apply_adapter, plan_adapter
from retrieval_engine.models.adapters import (
    Adapter,
    base_tensor_name,
    read_adapter,
    resolve,
    with_adapter,
)
from retrieval_engine.models.checkpoint import Checkpoint, read_config, tensor_names, tied_twin
from retrieval_engine.models.learner import open_learner
from retrieval_engine.models.write_checkpoint import write_json
from retrieval_engine.records import Json
from retrieval_engine.train.finetune.config import Task
from retrieval_engine.train.lora import base_name
from retrieval_engine.train.model_files import write_model


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
    model = _open_base(checkpoint, read)
    names, before, changed = tensor_names(checkpoint.path), dict(model.state_dict()), set[str]()
    for adapter in read:
        plan = plan_adapter(model, adapter, names)
        if plan.elsewhere:
            raise CheckpointInvalid(
                f"{adapter} changes layers that a {type(model).__name__} does not have",
                hint="merge adapters of one task and one base",
            )
        touched = plan.whole.keys() | _of_layers(model, plan.homes)
        before |= {name: before[name].clone() for name in touched - changed}
        changed |= touched
        model = apply_adapter(model, adapter, plan)
    after = model.state_dict()
    new = {name: after[name] for name in changed if not torch.equal(after[name], before[name])}
    _check_ties(after, new)
    write_model(checkpoint.path, {name: v.detach().clone() for name, v in new.items()}, out)
    tensors: list[Json] = [*sorted(new)]
    record: dict[str, Json] = {
        "base": base_name(checkpoint),
        "adapters": [str(path) for path in adapters],
        "tensors": tensors,
    }
    write_json(out / "merged.json", record)
    return out


def _open_base(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> nn.Module:
    """The modules that the adapters change, in float32: those of one task."""
    names = {base_tensor_name(name) for adapter in adapters for name in adapter.tensors()}
    plain = replace(checkpoint, adapter=None)
    kinds = " ".join(map(str, read_config(checkpoint.path).get("architectures") or ()))  # type: ignore[arg-type]
    writes = any(name.startswith(("text_decoder.", "language_")) for name in names)
    matches = "Retrieval" in kinds or not kinds
    task = Task.RETRIEVAL if matches and not writes else Task.CAPTION
    sees = any(name.startswith("vision_model.") for name in names)
    return open_learner(plain, task, with_tower=sees, dtype=torch.float32).model


def _of_layers(model: nn.Module, homes: Set[str]) -> set[str]:
    """Names of the tensors of layers."""
    return {name for name in model.state_dict() if name.rpartition(".")[0] in homes}


def _check_ties(after: Mapping[str, Tensor], changed: Iterable[str]) -> None:
    """Refuse what a checkpoint cannot say: one of two tied tensors changed without the other."""
    for name in changed:
        for twin in (n for n in after if tied_twin(n) == name or tied_twin(name) == n):
            if not torch.equal(after[twin], after[name]):
                raise CheckpointInvalid(
                    f"the adapter changes {name}, which the base keeps in one with {twin}: a "
                    "merged checkpoint would change both",
                    hint="use the adapter as it is: its directory is a model like any other",
                )
