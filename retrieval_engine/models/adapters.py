"""Adapters (LoRA and its kin, as peft writes them) on top of a checkpoint: found, checked, told apart.

A directory with `adapter_config.json` can be given wherever a checkpoint can: its record names the
base. Loading merges the adapter into the base's weights in memory (`adapter_layers.py`), so that an
adapted model costs what the base costs. The base is told by a digest of its weights: an adapter on
another base is refused, and so is one with a tensor that belongs to nothing in its base. An adapter
changes the fingerprints of the parts it touches, and of no others.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_engine.errors import CheckpointInvalid, FingerprintMismatch
from retrieval_engine.fingerprint import EncoderSpec, digest
from retrieval_engine.models.checkpoint import (
    Checkpoint,
    find_model,
    tensor_names,
    weight_digests,
    without_wrappers,
)
from retrieval_engine.models.checksums import check_checksums
from retrieval_engine.network import hub_id
from retrieval_engine.records import Json
from retrieval_engine.strict_json import loads

if TYPE_CHECKING:
    from torch import Tensor

PEFT_CONFIG, PEFT_WEIGHTS, RECORD = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "vlre_adapter.json",
)
_PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."
_LORA_SETTINGS = ("r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_dora", "use_rslora")
# What no number depends on, or what the tensors' names and values say anyway.
_INERT = re.compile(
    r"peft_type|peft_version|task_type|auto_mapping|base_model_.*|parent_library|revision|"
    r"inference_mode|target_modules|modules_to_save|exclude_modules|"
    r"layers_.*|bias|.*dropout|megatron_.*|runtime_config|qalora_group_size|loftq_config|"
    r"lora_ga_config|corda_config|eva_config|init_weights"
)
# A base stores a weight that two modules share once; these may go without their own.
_MAY_BE_TIED = ("lm_head", "predictions.decoder", "embed_tokens", "shared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter on disk: its files and what it belongs to.

    Attributes:
        path: directory in peft's layout.
        kind: peft's name of its kind, e.g. `LORA`.
        base: the checkpoint it was trained on, as `resolve` takes it; empty where not recorded.
        base_digest: of that checkpoint's weights; empty where not recorded.
        settings: what scales its tensors.
    """

    path: Path
    kind: str
    base: str
    base_digest: str
    settings: Mapping[str, Json]

    def tensors(self) -> "dict[str, Tensor]":
        """Its tensors by name, as in the file; a pickled file runs no code.

        Raises:
            CheckpointInvalid: the file is missing or damaged, or holds more than tensors.
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from retrieval_engine.models.pickled import load_pickled

        file = self.path / PEFT_WEIGHTS
        try:
            if file.is_file() or not (self.path / _PICKLED).is_file():
                return load_file(file)
        except (OSError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointInvalid(f"{file} cannot be read: {reason}") from error
        file = self.path / _PICKLED
        found = load_pickled(file)
        if not isinstance(found, dict) or not all(
            isinstance(v, torch.Tensor) for v in found.values()
        ):
            raise CheckpointInvalid(f"{file} holds more than tensors")
        return found

    def __str__(self) -> str:
        return f"adapter {self.path} ({self.kind})"


def base_tensor_name(name: str) -> str:
    """A tensor of an adapter without peft's prefix and those of wrappers that it was trained in.

    `base_model.model._orig_mod.qformer.x.lora_A.weight` is `qformer.x.lora_A.weight`. What peft keeps
    once for all layers (`base_model.vera_A`) has another prefix and stays as it is.
    """
    return without_wrappers(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name


def is_shared(name: str) -> bool:
    """Whether a tensor of an adapter serves all of its layers."""
    return name.startswith("base_model.") and not name.startswith(PREFIX)


def modules_with_weights(names: Iterable[str]) -> set[str]:
    """The modules that tensors of these names lie in."""
    return {name.rpartition(".")[0] for name in names} - {""}


def home_of(name: str, modules: Set[str]) -> str:
    """The module of the base that a tensor of an adapter belongs to; empty where there is none.

    Args:
        name: as `base_tensor_name` gives it.
        modules: those of the base that have weights.
    """
    module = name.rpartition(".")[0]
    while module and module not in modules and not module.endswith(_MAY_BE_TIED):
        module = module.rpartition(".")[0]
    return module


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
            kind=str(config.get("peft_type", "of no kind")),
            base=str(record.get("base") or config.get("base_model_name_or_path") or ""),
            base_digest=str(record.get("base_digest", "")),
            settings=_settings(config),
        )
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointInvalid(f"the adapter in {path} cannot be read: {error}") from error


def _settings(config: Mapping[str, Json]) -> dict[str, Json]:
    """All of an adapter's config that decides numbers beside its tensors."""
    more: dict[str, Json] = {k: v for k, v in config.items() if v and not _INERT.fullmatch(k)}
    if config.get("peft_type") != "LORA":
        return more
    if more.get("init_lora_weights") is True:
        del more["init_lora_weights"]
    return more | {name: config.get(name) for name in _LORA_SETTINGS}


def resolve(name: str) -> Checkpoint:
    """Find a checkpoint as `find_model` does, or an adapter as well and the base it names.

    Raises:
        CheckpointNotFound: neither a directory nor shipped nor on a hub that can be reached.
        CheckpointInvalid: the directory holds neither a model nor an adapter with a known base.
        FingerprintMismatch: the adapter was trained on other weights than its base has now.
    """
    path = Path(name).expanduser().resolve()
    if not is_adapter(path):
        found = find_model(name)
        if not is_adapter(found.path):  # of the hub
            return found
        path = found.path
    adapter = read_adapter(path)
    if not adapter.base:
        raise CheckpointInvalid(
            f"the adapter in {path} does not say what it was trained on",
            hint="name the base as `model` and the directory as its `adapter`",
        )
    return with_adapter(resolve(adapter.base), name if hub_id(name) else path)


def base_digest(path: Path) -> str:
    """Digest of all weights in a checkpoint's directory."""
    return weight_digests(path, lambda name: "all", {"all": ""})["all"]


def with_adapter(checkpoint: Checkpoint, place: str | Path) -> Checkpoint:
    """A checkpoint that is loaded with an adapter.

    Args:
        checkpoint: the base.
        place: the adapter's directory, or its hub id.

    Raises:
        CheckpointNotFound: it is a hub id, and the hub has it not or is out of reach.
        CheckpointInvalid: there is no adapter at the path, or it belongs to another architecture.
        FingerprintMismatch: the adapter was trained on other weights.
    """
    known = find_model(name) if (name := hub_id(place)) else None
    path = known.path if known else Path(place).resolve()
    adapter = read_adapter(path)
    if adapter.base_digest and (found := base_digest(checkpoint.path)) != adapter.base_digest:
        raise FingerprintMismatch(
            f"adapter {path}",
            seen=adapter.base_digest,
            expected=found,
            hint=f"it belongs to {adapter.base or 'another base'}, not to {checkpoint.name}",
        )
    check_homes(adapter, tensor_names(checkpoint.path))
    # The revision is of the name, as `recorded_checkpoint` puts them together.
    name, revision = (known.name, known.revision) if known else (str(path), "")
    return replace(checkpoint, name=name, revision=revision, adapter=path)


def check_homes(adapter: Adapter, names: Iterable[str]) -> None:
    """Make sure that every tensor of an adapter belongs to one of its base's, given by their names.

    Raises:
        CheckpointInvalid: one belongs to nothing; the message has its name.
    """
    known = set(names)
    modules = modules_with_weights(known)
    if any(name.startswith("text_decoder.") for name in known):
        # A decoder may take from the encoder what the files then hold once.
        start = "text_encoder."
        modules |= {
            f"text_decoder.bert.{m.removeprefix(start)}" for m in modules if m.startswith(start)
        }
    tensors = adapter.tensors()
    if all(map(is_shared, tensors)):
        raise CheckpointInvalid(
            f"{adapter}: its tensors ({', '.join(sorted(tensors)) or 'none'}) do not tell which layers "
            "they change",
            hint="merge it with peft where it was trained, and use the merged model",
        )
    for name in tensors:
        inner = base_tensor_name(name)
        if not (is_shared(name) or inner in known or home_of(inner, modules)):
            raise CheckpointInvalid(
                f"{adapter}: its tensor {name} belongs to nothing in the base",
                hint="give the base it was trained on; kinds that are no change of a layer's "
                "weights (prompts, prefixes) cannot be used",
            )


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
    shared: dict[str, str] = {}
    for name, tensor in sorted(adapter.tensors().items()):
        value = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
        value.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        part = part_of(base_tensor_name(name)) or ""
        mine = shared if is_shared(name) else found.setdefault(part, {})
        mine[name] = value.hexdigest()
    found = {part: own | shared for part, own in found.items()}
    settings = dict(adapter.settings)
    weights = {
        part: digest([before, settings, found[part]]) if part in found else before
        for part, before in spec.weights.items()
    }
    touched = {part: found[part] for part in found if part in spec.weights}
    mark = digest([settings, touched]) if touched else ""
    return replace(spec, weights=weights, adapter=mark)
