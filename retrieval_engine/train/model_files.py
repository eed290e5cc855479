"""Writes a trained model as a directory: the base's own files, with only the trained tensors new.

What was not trained keeps its bytes. What was is float32, whatever the base has: rounding it back
to half precision would lose small steps.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_engine.durable import partial_of, replace_file, writing
from retrieval_engine.errors import TrainingError
from retrieval_engine.models.blip.settings import decoder_twin, shares_decoder
from retrieval_engine.models.checkpoint import read_config, tensors_of, tied_twin, weight_files
from retrieval_engine.models.checksums import CHECKSUMS, write_checksums
from retrieval_engine.models.lexicon import WORD_COUNTS

if TYPE_CHECKING:
    from torch import Tensor, nn

_NOT_COPIED = (
    *(CHECKSUMS, "README.md", "training.json", "log.jsonl", "curves.png", "samples.jsonl"),
    WORD_COUNTS,  # who learned from other captions may write other words
)
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".h5", ".msgpack", ".ckpt", ".onnx")
_INDEX = ".index.json"


def trained_tensors(model: "nn.Module") -> "dict[str, Tensor]":
    """What was trained, under every name that the model has for it, float32 on the CPU."""
    trained = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    return {
        name: value.detach().float().cpu().clone()
        for name, value in model.state_dict().items()
        if value.data_ptr() in trained
    }


def write_model(base: Path, changed: "Mapping[str, Tensor]", out: Path) -> None:
    """Write a checkpoint that differs from its base in some tensors.

    Args:
        base: directory of the base.
        changed: new values by name.
        out: directory; made where missing.

    Raises:
        TrainingError: a tensor of another shape than the base's.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for file in sorted(base.iterdir()):
        weighty = file.suffix in _WEIGHTS or file.name.endswith(_INDEX)
        if file.is_file() and not weighty and file.name not in _NOT_COPIED:
            shutil.copyfile(file, out / file.name)
            written.append(file.name)
    index: dict[str, str] = {}
    left = dict(changed)
    files = weight_files(base)
    for number, file in enumerate(files):
        # The same file names, so that the shards' index of the base stays true.
        name = file.name if file.suffix == ".safetensors" else _safe_name(number, len(files))
        index |= dict.fromkeys(_rewrite(file, left, out / name), name)
    if left:
        raise TrainingError(f"the base has no tensor {next(iter(left))}, which was trained")
    if len(files) > 1:
        value = {"metadata": {}, "weight_map": dict(sorted(index.items()))}
        written.append(f"model.safetensors{_INDEX}")
        replace_file(out / written[-1], json.dumps(value, indent=2).encode())
    write_checksums(out, [*written, *index.values()])


def _rewrite(file: Path, left: "dict[str, Tensor]", to: Path) -> list[str]:
    """Copy a file with new values for what it holds of `left`; returns all its names."""
    from safetensors.torch import save_file

    tensors = tensors_of(file)
    if file.suffix != ".safetensors":  # mapped, perhaps from where it is written
        tensors = {name: value.clone() for name, value in tensors.items()}
    if shares_decoder(read_config(file.parent)):
        _part_towers(tensors, left)
    mine = [name for name in left if name in tensors]
    if not mine and file.suffix == ".safetensors":
        shutil.copyfile(file, to)
        return list(tensors)
    for name in mine:
        value = left.pop(name)
        if value.shape != tensors[name].shape:
            raise TrainingError(
                f"{name} is {list(value.shape)}, the base has {list(tensors[name].shape)}"
            )
        tensors[name] = value
    # What the base stores once under one of two tied names is trained under both.
    stored = set(tensors)
    for name in [n for n in left if _is_tied(n, stored)]:
        del left[name]
    partial = partial_of(to)
    try:
        with writing(to):
            save_file(tensors, partial, metadata={"format": "pt"})
            partial.replace(to)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return list(tensors)


def _part_towers(tensors: "dict[str, Tensor]", left: "Mapping[str, Tensor]") -> None:
    """Where BLIP's text towers share what is stored once and one is trained, both get their own.

    The other tower keeps the base's values: training a decoder must not change what is searched.
    """
    for name in [n for n in tensors if decoder_twin(n)]:
        twin = str(decoder_twin(name))
        if twin not in tensors and (name in left or twin in left):
            tensors[twin] = tensors[name].clone()


def _is_tied(name: str, stored: set[str]) -> bool:
    """Whether a tensor is another name of one that is stored."""
    return tied_twin(name) in stored or any(tied_twin(other) == name for other in stored)


def _safe_name(number: int, count: int) -> str:
    if count == 1:
        return "model.safetensors"
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"
