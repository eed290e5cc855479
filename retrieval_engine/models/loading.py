"""Builds transformers models from a checkpoint and refuses half-loaded ones."""

import importlib.util
import json
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from retrieval_engine.errors import CheckpointInvalid, MissingExtra, UsageError, one_line
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.adapters import read_adapter
from retrieval_engine.models.checkpoint import (
    Checkpoint,
    read_config,
    tensor_names,
    tensors_of,
    weight_files,
    without_wrappers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Model = TypeVar("Model", bound="nn.Module")
Config = TypeVar("Config", bound="PreTrainedConfig")
Tokenizer = TypeVar("Tokenizer", bound="PreTrainedTokenizerBase")

_SHOWN = 5

# transformers replaces functions of its own while it builds a model: of two at once, one is left
# with weights that are not tied, and so is every later one.
_one_at_a_time = threading.RLock()


def load_model(
    kind: type[Model],
    checkpoint: Checkpoint,
    *,
    dtype: Any,
    quantize: str = "",
    fill: "Callable[[dict[str, Tensor]], dict[str, Tensor]] | None" = None,
) -> Model:
    """A model in evaluation mode with every parameter from the checkpoint.

    transformers initialises what a checkpoint lacks at random and prints a report. A retrieval
    engine must not: a random text tower still gives vectors.

    Args:
        kind: the transformers class.
        checkpoint: where the files are.
        dtype: torch dtype of the parameters.
        quantize: `8bit` or `4bit` to keep linear layers so, on CUDA, through bitsandbytes.
        fill: adds to the tensors of the files what the class knows under other names too.

    The checkpoint's adapter, where it has one, is merged into the weights.

    Raises:
        CheckpointInvalid: files are damaged, or parameters are missing or of another shape.
    """
    import torch
    from safetensors import SafetensorError

    for file in weight_files(checkpoint.path):
        if file.suffix != ".safetensors":
            tensors_of(file)  # refuses more than tensors; transformers advises otherwise
    loader: Any = kind
    more: dict[str, Any] = dict(_quantization(quantize, dtype)) if quantize else {}
    try:
        with _one_at_a_time, _quiet():
            more["config"] = load_config(loader.config_class, checkpoint)
            if fill is not None:
                more["state_dict"] = fill(_all_tensors(checkpoint.path))
            model, report = loader.from_pretrained(
                None if fill else checkpoint.path,
                dtype=dtype,
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are refused here, by name
                **more,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointInvalid(
            f"{checkpoint.name} cannot be loaded as {kind.__name__}: {one_line(error)}",
            hint="the directory must hold the matching config.json and weights",
        ) from error
    _check_sizes(checkpoint, report["mismatched_keys"])
    if report["missing_keys"]:
        raise _lacking(checkpoint, kind, sorted(report["missing_keys"]))
    if checkpoint.adapter is not None:
        whole = partial(load_model, kind, dtype=torch.float32, fill=fill)
        model = _adapted(model, checkpoint, whole)
    ready: Model = model.eval()
    return ready


def load_config(kind: type[Config], checkpoint: Checkpoint) -> Config:
    """The checkpoint's config.json as transformers has it.

    A model is loaded in parts, and transformers takes longer over a config than over small weights:
    equal files are parsed once.

    Args:
        kind: the transformers class.
        checkpoint: where the file is.

    Raises:
        CheckpointInvalid: it is no JSON object.
    """
    name: Any = kind
    found: Config = deepcopy(_parsed(name, json.dumps(read_config(checkpoint.path))))
    return found


@lru_cache(maxsize=16)
def _parsed(kind: Any, text: str) -> Any:
    return kind.from_dict(json.loads(text))


def _check_sizes(checkpoint: Checkpoint, mismatched: "Iterable[tuple[str, Any, Any]]") -> None:
    for name, seen, wanted in sorted(mismatched, key=lambda entry: entry[0]):
        raise CheckpointInvalid(
            f"{checkpoint.name}: {name} is {list(seen)} in the weights, and {list(wanted)} by "
            "config.json",
            hint="config.json and the weights must be of one model"
            + ("; rows of embeddings are `vocab_size`" if "embed" in name else ""),
        )


def _lacking(checkpoint: Checkpoint, kind: type, missing: list[str]) -> CheckpointInvalid:
    """Why parameters are missing, as far as the names in the files tell."""
    names = tensor_names(checkpoint.path)
    wrapped = next((n for n in sorted(names) if without_wrappers(n) in missing), "")
    if wrapped:
        prefix = wrapped.removesuffix(without_wrappers(wrapped))
        return CheckpointInvalid(
            f"{checkpoint.name}: names of its tensors begin with {prefix!r}, e.g. {wrapped}: it was "
            "saved with the wrapper that it was trained in",
            hint="save the model inside: `model.module` of DistributedDataParallel, "
            "`model._orig_mod` of torch.compile",
        )
    parts = sorted({name.partition(".")[0] for name in names})
    return CheckpointInvalid(
        f"{checkpoint.name} lacks {len(missing)} parameters of {kind.__name__}: {_listed(missing)}",
        hint=f"its weights hold {_listed(parts)}; a checkpoint with the others is needed: retrieval "
        "(ITM) checkpoints have all that is searched and matched with",
    )


def _adapted(model: Any, checkpoint: Checkpoint, in_float32: "Callable[[Checkpoint], Any]") -> Any:
    """The model with the checkpoint's adapter merged into it.

    Args:
        model: without the adapter.
        checkpoint: names the adapter.
        in_float32: loads the same model so; sums are rounded once, from the weights as stored.
    """
    import torch

    from retrieval_engine.models.adapter_layers import apply_adapter, plan_adapter

    assert checkpoint.adapter is not None
    adapter = read_adapter(checkpoint.adapter)
    plan = plan_adapter(model, adapter, tensor_names(checkpoint.path))
    if not plan.touches or model.dtype == torch.float32:
        return apply_adapter(model, adapter, plan) if plan.touches else model
    whole = in_float32(replace(checkpoint, adapter=None))
    return apply_adapter(whole, adapter, plan).to(model.dtype)


def _all_tensors(path: "Path") -> "dict[str, Tensor]":
    return {name: t for file in weight_files(path) for name, t in tensors_of(file).items()}


def _quantization(name: str, dtype: Any) -> dict[str, object]:
    """What `from_pretrained` takes for 8-bit or 4-bit weights.

    Raises:
        MissingExtra: bitsandbytes is not installed.
        UsageError: there is no CUDA device.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "quant")
    if not torch.cuda.is_available():
        raise UsageError(f"{name} weights need a CUDA device", hint="train without `quantize`")
    config = BitsAndBytesConfig(
        load_in_8bit=name == "8bit",
        load_in_4bit=name == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


@contextmanager
def _quiet() -> "Iterator[None]":
    """Keep transformers' bars and load report off stderr; we make an error of the report."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(kind: type[Tokenizer], checkpoint: Checkpoint, *, rows: int) -> Tokenizer:
    """The checkpoint's tokenizer.

    Args:
        kind: the transformers class.
        checkpoint: where its files are.
        rows: of the word embeddings; each id must be one of them.

    Raises:
        CheckpointInvalid: there is none, it knows almost no words (transformers builds a
            five-token tokenizer in silence where the vocabulary is missing), or it has ids that the
            word embeddings lack.
    """
    files = [checkpoint.path / name for name in ("tokenizer.json", "vocab.txt", "spiece.model")]
    if not any(file.is_file() for file in files):
        raise CheckpointInvalid(
            f"{checkpoint.name} has no tokenizer",
            hint="expected tokenizer.json, vocab.txt or spiece.model",
        )
    loader: Any = kind
    try:
        with _quiet():
            tokenizer: Tokenizer = loader.from_pretrained(checkpoint.path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = one_line(error)
        raise CheckpointInvalid(
            f"{checkpoint.name}: tokenizer cannot be loaded: {reason}"
        ) from error
    word, last = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if last >= rows:
        raise CheckpointInvalid(
            f"{checkpoint.name}: its tokenizer has ids up to {last:,} ({word!r}), its word "
            f"embeddings {rows:,} rows",
            hint="tokenizer and weights must be of one model",
        )
    return tokenizer


def vocabulary_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Digest of a tokenizer's words and ids, and of what else decides ids where it is unusual."""
    words: list[object] = [*sorted(tokenizer.get_vocab().items())]
    unusual = unusual_settings(tokenizer)
    return digest([words, unusual] if unusual else words)


def unusual_settings(tokenizer: "PreTrainedTokenizerBase") -> dict[str, object]:
    """Settings that move token ids and are not those of BLIP's and BLIP-2's own tokenizers.

    Sentences are padded here, on the right, whatever side the tokenizer would take.
    """
    found: dict[str, object] = {}
    if tokenizer.truncation_side != "right":
        found["truncation_side"] = tokenizer.truncation_side
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normaliser = json.loads(backend.to_str())["normalizer"] if backend is not None else None
    if normaliser and normaliser["type"] == "BertNormalizer":
        usual = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
        usual["lowercase"] = True
        found |= {k: normaliser[k] for k, v in usual.items() if normaliser[k] != v}
    return found
