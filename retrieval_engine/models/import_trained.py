"""Turns a .pt file of a training loop around a transformers model into a directory.

Such loops save `model.state_dict()`, alone or beside optimiser and epoch, in Hugging Face's names;
config, tokenizer and preprocessing are those of the model that they started from.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_engine.errors import CheckpointInvalid, UsageError
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.checkpoint import Checkpoint, read_config
from retrieval_engine.models.import_files import (
    RECORD,
    check_free,
    read_tensors,
    separate,
    sha256_of,
    write_json,
)
from retrieval_engine.models.import_names import Translation, check

_ENDINGS = (".json", ".txt", ".model")
_OF_WEIGHTS = (".index.json",)
_OF_THE_BASE = ("training.json", "vlre_checksums.json", RECORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedWeights:
    """What an import made; the same is in the directory's `vlre-import.json`.

    Attributes:
        kind: the transformers class.
        base: the model whose config, tokenizer and preprocessing it has.
        source: name of the file.
        source_sha256: of its bytes.
        parameters: numbers in all tensors that were kept.
    """

    kind: str
    base: str
    source: str
    source_sha256: str
    parameters: int


def import_trained(file: Path, out: Path, *, base: str) -> ImportedWeights:
    """Put the weights of a training loop into the place of those they were trained from.

    Args:
        file: what `torch.save` wrote: a state dict, or one under `model_state_dict`, `model`, ….
        out: directory to make; it exists only when it is whole.
        base: the checkpoint that the training started from: a directory or hub id.

    Raises:
        CheckpointInvalid: the file is damaged, holds code, or its tensors are not those of the
            base, by names and shapes.
        UsageError: `out` exists, or the base is an adapter.
    """
    import transformers
    from safetensors.torch import save_file

    from retrieval_engine.models.checksums import write_checksums

    check_free(out)
    found = resolve(base)
    if found.adapter is not None:
        raise UsageError(f"`base={base!r}` is an adapter; weights replace those of a whole model")
    config = read_config(found.path)
    name = str((config.get("architectures") or ["?"])[0])  # type: ignore[index]
    kind: Any = getattr(transformers, name, None)
    if kind is None:
        raise CheckpointInvalid(f"{found.name}: transformers knows no {name}")
    built = kind.config_class.from_dict(config)
    tied = set(kind._tied_weights_keys or ())
    tensors = {
        key: tensor
        for key, tensor in read_tensors(file).items()
        if key not in tied and not key.endswith("position_ids")
    }
    check(
        Translation(
            kind=name,
            config=built,
            models=(kind,),
            tensors=tensors,
            names=(),
            dropped={},
            special_tokens=(),
            mean=[],
            std=[],
        )
    )
    report = ImportedWeights(
        kind=name,
        base=found.name,
        source=file.name,
        source_sha256=sha256_of(file),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
    )
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _copy_settings(found, partial)
        weights = partial / "model.safetensors"
        save_file(separate(tensors), weights, {"format": "pt"})
        shutil.copymode(partial / "config.json", weights)  # safetensors lets nobody else read it
        write_json(partial / RECORD, {k: getattr(report, k) for k in report.__slots__})
        write_checksums(partial, [each.name for each in partial.iterdir()])
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _copy_settings(base: Checkpoint, out: Path) -> None:
    """Everything of a checkpoint but its weights and what is said of these weights."""
    for file in base.path.iterdir():
        kept = file.suffix in _ENDINGS and not file.name.endswith(_OF_WEIGHTS)
        if kept and file.name not in _OF_THE_BASE:
            (out / file.name).write_bytes(file.read_bytes())
