"""Finds a checkpoint's files and says what is in them, without building a model."""

import hashlib
import json
import mmap
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from retrieval_engine.errors import CheckpointInvalid, CheckpointNotFound, HubFailure
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.checksums import check_checksums
from retrieval_engine.models.remembered import recalled, remember
from retrieval_engine.network import from_hub
from retrieval_engine.records import Json
from retrieval_engine.strict_json import loads

if TYPE_CHECKING:
    from torch import Tensor

_SMALL_FILES = ["*.json", "*.txt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a model's files are.

    Attributes:
        name: as the user gave it.
        path: directory with config.json, weights and tokenizer files.
        revision: hub commit, or empty.
        adapter: directory of an adapter that is merged into the weights on loading, or None.
        fast_decode: decode large JPEGs at a fraction of their size, whatever the files say.
    """

    name: str
    path: Path
    revision: str = ""
    adapter: Path | None = None
    fast_decode: bool = False


def shipped() -> dict[str, Path]:
    """Directories of the models that ship with the package, by name."""
    shipped_ones = Path(__file__).parents[1] / "checkpoints"
    return {p.name: p for p in sorted(shipped_ones.glob("*")) if (p / "config.json").is_file()}


def trained_on(name: str) -> str:
    """Kind of the source that a model on this machine was pretrained on, where its record says.

    Args:
        name: as `find_model` takes it; nothing is downloaded for it.

    Returns:
        `scenes`, `flickr8k`, …; empty where it is not known.
    """
    record = shipped().get(name, Path(name).expanduser()) / "training.json"
    try:
        config = json.loads(record.read_text(encoding="utf-8"))["config"]
        return str(config["source"]).partition(":")[0]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def find_model(name: str) -> Checkpoint:
    """Find a model's files: a directory, a shipped model, or a hub id with optional `@revision`.

    Raises:
        CheckpointNotFound: it is none of them, or the hub cannot be reached and holds no copy here.
        CheckpointInvalid: the directory holds no model.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointInvalid(
                f"{name} is a directory without config.json",
                hint="give a directory in Hugging Face layout; `import_checkpoint()` makes one "
                "from an original .pth file",
            )
        path = path.resolve()
        check_checksums(path)
        return Checkpoint(name=str(path), path=path)
    if name in shipped():
        return Checkpoint(name=name, path=shipped()[name])
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointNotFound(
            f"no checkpoint {name!r}: not a directory, nor shipped ({', '.join(shipped())}), "
            "nor a hub id such as Salesforce/blip-itm-base-coco",
        )
    return _from_hub(name)


def _from_hub(name: str) -> Checkpoint:
    try:
        path = from_hub("checkpoint", name, [*_SMALL_FILES, "*.safetensors"])
        if not list(path.glob("*.safetensors")):
            path = from_hub("checkpoint", name, [*_SMALL_FILES, "*.bin"])
    except HubFailure as error:
        raise CheckpointNotFound(
            error.message,
            hint=f"{error.hint}; use `model=DIR`, or the default, `model='vlre-photo'`".lstrip(
                "; "
            ),
        ) from error
    check_checksums(path)
    return Checkpoint(name=name, path=path, revision=path.name)


def read_config(path: Path) -> dict[str, Json]:
    """The checkpoint's config.json.

    Raises:
        CheckpointInvalid: it is no JSON object.
    """
    try:
        config = loads((path / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointInvalid(f"{path / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointInvalid(f"{path / 'config.json'} is not a JSON object")
    return config


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights: safetensors, else PyTorch's own.

    Raises:
        CheckpointInvalid: there are none.
    """
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        if files := sorted(path.glob(pattern)):
            return files
    raise CheckpointInvalid(
        f"{path} has no weights", hint="expected model.safetensors or pytorch_model.bin"
    )


_WRAPPERS = re.compile(r"^((_orig_mod|module|model)\.)+|(?<=\.)_orig_mod\.")


def without_wrappers(name: str) -> str:
    """A tensor's name without what torch.compile, DistributedDataParallel and Lightning put on it."""
    return _WRAPPERS.sub("", name)


def tensor_names(path: Path) -> set[str]:
    """Names of all tensors in a checkpoint's directory; see `tensor_shapes`."""
    return set(tensor_shapes(path))


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of all tensors in a checkpoint's directory, from the headers of its files.

    Raises:
        CheckpointInvalid: there are no weights, or a file is damaged.
    """
    found: dict[str, list[int]] = {}
    for file in weight_files(path):
        if file.suffix != ".safetensors":
            found |= {name: list(value.shape) for name, value in tensors_of(file).items()}
            continue
        with _opened(file) as (_, header, _):
            found |= {name: entry["shape"] for name, entry in header.items()}
    return found


@contextmanager
def _opened(file: Path) -> Iterator[tuple[BinaryIO, dict[str, Any], int]]:
    """A safetensors file with its header, and where the tensors' bytes begin.

    Raises:
        CheckpointInvalid: it is damaged, as far as the block reads it.
    """
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is cut off")
            header = loads(handle.read(length))
            header.pop("__metadata__", None)
            yield handle, header, 8 + length
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointInvalid(
            f"{file} is damaged: {error}", hint="download or copy the file again"
        ) from error


def weight_digests(
    path: Path, part_of: Callable[[str], str | None], configs: Mapping[str, object]
) -> dict[str, str]:
    """Digest of each part of a model: its tensors and the configuration that shapes their use.

    Args:
        path: the checkpoint's directory.
        part_of: part that a tensor of this name belongs to; None for one that decides nothing.
        configs: by part, JSON values of its configuration; other parts are passed over.

    Raises:
        CheckpointInvalid: a weight file is damaged.
    """
    tensors: dict[str, dict[str, str]] = {part: {} for part in configs}
    for file in weight_files(path):
        reader = _safetensors if file.suffix == ".safetensors" else _pickled
        for name, value in reader(file, lambda name: part_of(name) in tensors):
            tensors[str(part_of(name))][name] = value
    return {part: digest([configs[part], found]) for part, found in tensors.items()}


def _safetensors(file: Path, counts: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Name and sha256 of each tensor, read from the mapped file as the format lays it out."""
    known = recalled(file)
    found = dict(known)
    with (
        _opened(file) as (handle, header, first),
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        for name, entry in sorted(header.items()):
            if not counts(name):
                continue
            if name in known:
                yield name, known[name]
                continue
            start, end = (first + offset for offset in entry["data_offsets"])
            if end > len(mapped):
                raise ValueError(f"ends before tensor {name}")
            value = hashlib.sha256(f"{entry['dtype']}{entry['shape']}".encode())
            with memoryview(mapped) as view:
                value.update(view[start:end])
            found[name] = value.hexdigest()
            yield name, found[name]
    if len(found) > len(known):
        remember(file, found)


def _pickled(file: Path, counts: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """As `_safetensors` for the same tensors, so that both files have one fingerprint."""
    import torch
    from safetensors.torch import _TYPES

    names = {dtype: name for name, dtype in _TYPES.items()}
    found: dict[str, str] = {}
    for name, tensor in sorted(tensors_of(file).items()):
        if counts(name):
            value = hashlib.sha256(f"{names[tensor.dtype]}{list(tensor.shape)}".encode())
            value.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            found[name] = value.hexdigest()
    yield from ((n, v) for n, v in found.items() if v != found.get(tied_twin(n) or ""))


TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "lm_head.weight": "model.decoder.embed_tokens.weight",
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
}
"""Ends of names that safetensors leave out, because they are a second name of another tensor."""


def tied_twin(name: str) -> str | None:
    """The name under which a tensor that may be tied is stored; None for one that is not."""
    ends = [(name.removesuffix(end), twin) for end, twin in TIED.items() if name.endswith(end)]
    return ends[0][0] + ends[0][1] if ends else None


def tensors_of(file: Path) -> "dict[str, Tensor]":
    """The tensors of a weight file of either kind, on the CPU; nothing in it runs.

    Raises:
        CheckpointInvalid: a pickled file is damaged, or holds more than tensors by name.
    """
    import torch
    from safetensors.torch import load_file

    from retrieval_engine.models.pickled import load_pickled

    if file.suffix == ".safetensors":
        return load_file(file)
    tensors = load_pickled(file)
    if not isinstance(tensors, dict):
        raise CheckpointInvalid(f"{file} holds a {type(tensors).__name__}, not a dict of tensors")
    others = [str(k) for k, v in tensors.items() if not isinstance(v, torch.Tensor)]
    if others:
        raise CheckpointInvalid(
            f"{file} holds more than tensors by name: {', '.join(others[:5])}",
            hint="it is a trainer's checkpoint: save the dictionary of tensors in it alone, as "
            "pytorch_model.bin; `import_checkpoint()` reads the authors' own files",
        )
    return dict(tensors)
