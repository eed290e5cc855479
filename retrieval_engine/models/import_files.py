"""Reads the tensors of an authors' .pth file, and writes them as a Hugging Face directory.

No code in the file ever runs; the directory is there whole or not at all.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from retrieval_engine.errors import CheckpointInvalid, UsageError
from retrieval_engine.models.checkpoint import without_wrappers
from retrieval_engine.models.checksums import write_checksums
from retrieval_engine.models.import_names import Translation
from retrieval_engine.models.pickled import load_pickled
from retrieval_engine.models.preprocess import preprocessor_config
from retrieval_engine.models.write_checkpoint import write_json, write_weights
from retrieval_engine.records import Json

if TYPE_CHECKING:
    from transformers import BertTokenizer

RECORD = "vlre-import.json"


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that `torch.save` wrote, by name, on the CPU and mapped from disk.

    A file may be a plain state dict, or hold it under `model`, `state_dict` or `model_state_dict`.
    What wrappers put before names is taken off: `module.` (DistributedDataParallel), `_orig_mod.`
    (torch.compile), `model.` (Lightning).

    Args:
        file: the .pth file.

    Raises:
        CheckpointInvalid: the file is absent, cut, damaged, holds code, or holds no tensors.
    """
    if not file.is_file():
        raise CheckpointInvalid(f"{file} is not a file")
    found = load_pickled(file)
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise CheckpointInvalid(f"{file} holds a {type(found).__name__}, not a dict of tensors")
    strange = [str(k) for k, v in found.items() if not isinstance(v, torch.Tensor)]
    if strange:
        raise CheckpointInvalid(
            f"{file} holds entries that are no tensors: {', '.join(strange[:10])}",
            hint="give the checkpoint of a BLIP or LAVIS run: a dict of tensors under 'model'",
        )
    return {without_wrappers(str(name)): tensor for name, tensor in found.items()}


def check_free(out: Path) -> None:
    """Make sure that nothing is at the output path, or an empty directory.

    Raises:
        UsageError: something is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"`out={str(out)!r}` exists", hint="choose another directory or remove it first"
        )


def write_directory(
    translation: Translation, tokenizer: "BertTokenizer", record: Mapping[str, Json], out: Path
) -> None:
    """Write config.json, model.safetensors, tokenizer, preprocessor_config.json and the record."""
    with new_directory(out) as folder:
        translation.config.architectures = [model.__name__ for model in translation.models]
        translation.config.dtype = "float32"
        translation.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        side = translation.config.vision_config.image_size
        look = preprocessor_config(side, translation.mean, translation.std)
        write_json(folder / "preprocessor_config.json", look)
        write_weights(translation.tensors, folder)
        write_json(folder / RECORD, record)


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory beside `out` that takes its place, with checksums, when the block ends well."""
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        write_checksums(partial, [file.name for file in partial.iterdir()])
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sha256_of(file: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
