"""Adapters (LoRA and its kin, as peft writes them) on top of a checkpoint, for everything that loads one.

A directory with `adapter_config.json` can be given wherever a checkpoint can: its record names the
base. Loading merges the adapter into the base's weights in memory, so that an adapted model costs
what the base costs. The base is told by a digest of its weights: an adapter on another base is
refused. An adapter changes the fingerprints of the parts it touches, and of no others.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_engine.errors import CheckpointInvalid, FingerprintMismatch
from retrieval_engine.fingerprint import EncoderSpec, digest
from retrieval_engine.models.checkpoint import Checkpoint, find_model, weight_digests
from retrieval_engine.models.checksums import check_checksums
from retrieval_engine.records import Json
from retrieval_engine.strict_json import loads

if TYPE_CHECKING:
    from torch import Tensor, nn

PEFT_CONFIG, PEFT_WEIGHTS, RECORD = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "vlre_adapter.json",
)
_PREFIX = "base_model.model."
_SUFFIX = re.compile(r"(\.base_layer)?\.(lora_[A-Za-z_]+|weight|bias)(\.weight|\.bias)?$")
_SETTINGS = ("r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_dora", "use_rslora")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter on disk: its files and what it belongs to.

    Attributes:
        path: directory in peft's layout.
        base: the checkpoint it was trained on, as `resolve` takes it; empty where not recorded.
        base_digest: of that checkpoint's weights; empty where not recorded.
        settings: what scales its tensors.
    """

    path: Path
    base: str
    base_digest: str
    settings: Mapping[str, Json]

    def tensors(self) -> "dict[str, Tensor]":
        """Its tensors by name, as in the file.

        Raises:
            CheckpointInvalid: the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path / PEFT_WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise CheckpointInvalid(
                f"{self.path / PEFT_WEIGHTS} cannot be read: {error}"
            ) from error

    def modules(self) -> set[str]:
        """Names of the modules of the base that it changes."""
        return {module_of(name) for name in self.tensors()}


def module_of(name: str) -> str:
    """The base's module that a tensor of an adapter belongs to."""
    return _SUFFIX.sub("", name.removeprefix(_PREFIX))


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter and no model of its own."""
    return (path / PEFT_CONFIG).is_file() and not (path / "config.json").is_file()


def read_adapter(path: Path) -> Adapter:
    """Read the adapter in a directory.

    Raises:
        CheckpointInvalid: there is none, its JSON cannot be understood, or a file is not the one
            that was written.
    """
    if not (path / PEFT_CONFIG).is_file():
        raise CheckpointInvalid(
            f"{path} holds no adapter", hint=f"expected {PEFT_CONFIG} and {PEFT_WEIGHTS}"
        )
    check_checksums(path)
    try:
        config = loads((path / PEFT_CONFIG).read_bytes())
        file = path / RECORD
        record = loads(file.read_bytes()) if file.is_file() else {}
        return Adapter(
            path=path,
            base=str(record.get("base") or config.get("base_model_name_or_path") or ""),
            base_digest=str(record.get("base_digest", "")),
            settings={name: config.get(name) for name in _SETTINGS},
        )
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointInvalid(f"the adapter in {path} cannot be read: {error}") from error


def resolve(name: str) -> Checkpoint:
    """Find a checkpoint as `find_model` does, or an adapter's directory and the base it names.

    Raises:
        CheckpointNotFound: neither a directory nor shipped nor on a hub that can be reached.
        CheckpointInvalid: the directory holds neither a model nor an adapter with a known base.
        FingerprintMismatch: the adapter was trained on other weights than its base has now.
    """
    path = Path(name).expanduser().resolve()
    if not is_adapter(path):
        return find_model(name)
    adapter = read_adapter(path)
    if not adapter.base:
        raise CheckpointInvalid(
            f"the adapter in {path} does not say what it was trained on",
            hint="name the base as `model` and the directory as its `adapter`",
        )
    return with_adapter(resolve(adapter.base), path)


def base_digest(path: Path) -> str:
    """Digest of all weights in a checkpoint's directory."""
    return weight_digests(path, lambda name: "all", {"all": ""})["all"]


def with_adapter(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """A checkpoint that is loaded with an adapter.

    Raises:
        CheckpointInvalid: there is no adapter at the path.
        FingerprintMismatch: the adapter was trained on other weights.
    """
    adapter = read_adapter(path)
    if adapter.base_digest:
        found = base_digest(checkpoint.path)
        if found != adapter.base_digest:
            raise FingerprintMismatch(
                f"adapter {path}",
                seen=adapter.base_digest,
                expected=found,
                hint=f"it belongs to {adapter.base or 'another base'}, not to {checkpoint.name}",
            )
    return replace(checkpoint, name=str(path), adapter=path)


def apply_adapter(model: "nn.Module", path: Path) -> "nn.Module":
    """Merge an adapter into a model, or into the part of one that a class holds, in place.

    Returns:
        The same model; untouched where the adapter changes nothing in it.

    Raises:
        CheckpointInvalid: the adapter does not fit.
    """
    from peft import PeftModel

    adapter = read_adapter(path)
    here = {name for name, _ in model.named_modules()}
    if not adapter.modules() & here:
        return model
    try:
        with peft_quiet():
            wrapped: Any = PeftModel.from_pretrained(model, str(path))
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointInvalid(
            f"adapter {path} does not fit the model: {str(error).splitlines()[0]}",
            hint="use the base it was trained on",
        ) from error
    merged: nn.Module = wrapped.merge_and_unload()
    return merged


@contextmanager
def peft_quiet() -> Iterator[None]:
    """Keep back the warning that peft and we use names which transformers 6 will drop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
        yield


def adapted(spec: EncoderSpec, path: Path, part_of: Callable[[str], str | None]) -> EncoderSpec:
    """The spec of a model with an adapter: another fingerprint for each part it touches.

    Args:
        spec: of the base.
        path: the adapter's directory.
        part_of: part that a tensor of the base decides; None for one that decides nothing.
    """
    import torch

    adapter = read_adapter(path)
    found: dict[str, dict[str, str]] = {}
    for name, tensor in sorted(adapter.tensors().items()):
        part = part_of(module_of(name) + ".weight")
        value = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
        value.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        found.setdefault(part or "", {})[name] = value.hexdigest()
    settings = dict(adapter.settings)
    weights = {
        part: digest([before, settings, found[part]]) if part in found else before
        for part, before in spec.weights.items()
    }
    touched = {part: found[part] for part in found if part in spec.weights}
    mark = digest([settings, touched]) if touched else ""
    return replace(spec, weights=weights, adapter=mark)
