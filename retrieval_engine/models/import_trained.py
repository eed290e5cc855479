"""Turns a .pt file of a training loop around a transformers model into a directory.

Such loops save `model.state_dict()`, alone or beside optimiser and epoch, in Hugging Face's names;
config, tokenizer and preprocessing are those of the model that they started from.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_engine.errors import CheckpointInvalid, UsageError
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.checkpoint import Checkpoint, read_config
from retrieval_engine.models.import_files import (
    RECORD,
    check_free,
    new_directory,
    read_tensors,
    sha256_of,
)
from retrieval_engine.models.import_names import problems, tied_names
from retrieval_engine.models.write_checkpoint import write_json, write_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    check_free(out)
    found = resolve(base)
    if found.adapter is not None:
        raise UsageError(f"`base={base!r}` is an adapter; weights replace those of a whole model")
    built = _without_weights(found)
    tied = tied_names(built)
    tensors = {
        name: tensor
        for name, tensor in read_tensors(file).items()
        if name not in tied and not name.endswith("position_ids")
    }
    if wrong := problems(tensors, [built]):
        raise CheckpointInvalid(
            f"{file} holds no weights of {found.name}: {wrong}",
            hint="give the model that the training started from, `base=ID`",
        )
    report = ImportedWeights(
        kind=type(built).__name__,
        base=found.name,
        source=file.name,
        source_sha256=sha256_of(file),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
    )
    with new_directory(out) as folder:
        _copy_settings(found, folder)
        write_weights(tensors, folder)
        write_json(folder / RECORD, asdict(report))
    return report


def _without_weights(base: Checkpoint) -> "PreTrainedModel":
    """The transformers model that a checkpoint's config.json names."""
    import torch
    import transformers

    config = read_config(base.path)
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else "?"
    kind: Any = getattr(transformers, name, None)
    if not hasattr(kind, "config_class"):
        raise CheckpointInvalid(f"{base.name}: transformers knows no model {name}")
    with torch.device("meta"):
        built: PreTrainedModel = kind(kind.config_class.from_dict(config))
    return built


def _copy_settings(base: Checkpoint, out: Path) -> None:
    """Everything of a checkpoint but its weights and what is said of these weights."""
    for file in base.path.iterdir():
        kept = file.suffix in _ENDINGS and not file.name.endswith(_OF_WEIGHTS)
        if kept and file.name not in _OF_THE_BASE:
            (out / file.name).write_bytes(file.read_bytes())
