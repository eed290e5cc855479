"""Reads the tensors of an authors' .pth file, and writes them as a Hugging Face directory.

No code in the file ever runs; the directory is there whole or not at all.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from retrieval_engine.durable import writing
from retrieval_engine.errors import CheckpointInvalid, UsageError
from retrieval_engine.models.checkpoint import without_wrappers
from retrieval_engine.models.checksums import write_checksums
from retrieval_engine.models.import_names import Translation
from retrieval_engine.models.pickled import load_pickled
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
        write_json(folder / "preprocessor_config.json", _preprocessor(translation))
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


def write_weights(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write model.safetensors beside a config.json."""
    weights = folder / "model.safetensors"
    with writing(weights):
        save_file(_separate(tensors), weights, {"format": "pt"})
    # safetensors leaves its files readable by their owner alone.
    shutil.copymode(folder / "config.json", weights)


def sha256_of(file: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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


def _preprocessor(translation: Translation) -> dict[str, Json]:
    side = translation.config.vision_config.image_size
    return {
        "image_processor_type": "BlipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,  # Pillow's number for bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(translation.mean),
        "image_std": list(translation.std),
    }


def write_json(file: Path, value: Mapping[str, Json]) -> None:
    """Write JSON for people to read too."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
