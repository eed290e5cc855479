"""Builds transformers models from a checkpoint and refuses half-loaded ones."""

import importlib.util
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from retrieval_engine.errors import CheckpointInvalid, MissingExtra, UsageError, one_line
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.adapters import apply_adapter
from retrieval_engine.models.checkpoint import Checkpoint, weight_files
from retrieval_engine.models.import_files import read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

Model = TypeVar("Model", bound="nn.Module")
Tokenizer = TypeVar("Tokenizer", bound="PreTrainedTokenizerBase")

_SHOWN = 5


def load_model(
    kind: type[Model],
    checkpoint: Checkpoint,
    *,
    dtype: Any,
    strict: bool = True,
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
        strict: refuse missing parameters.
        quantize: `8bit` or `4bit` to keep linear layers so, on CUDA, through bitsandbytes.
        fill: adds to the tensors of the files what the class knows under other names too.

    The checkpoint's adapter, where it has one, is merged into the weights.

    Raises:
        CheckpointInvalid: files are damaged, or parameters are missing or of another shape.
    """
    from safetensors import SafetensorError

    for file in weight_files(checkpoint.path):
        if file.suffix != ".safetensors":
            read_tensors(file)  # refuses more than tensors; transformers advises otherwise
    loader: Any = kind
    more = _quantization(quantize, dtype) if quantize else {}
    try:
        with _quiet():
            if fill is not None:
                more["state_dict"] = fill(all_tensors(checkpoint.path))
                more["config"] = loader.config_class.from_pretrained(checkpoint.path)
            model, report = loader.from_pretrained(
                None if fill else checkpoint.path,
                dtype=dtype,
                output_loading_info=True,
                local_files_only=True,
                **more,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointInvalid(
            f"{checkpoint.name} cannot be loaded as {kind.__name__}: {one_line(error)}",
            hint="the directory must hold the matching config.json and weights",
        ) from error
    missing = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if strict and missing:
        raise CheckpointInvalid(
            f"{checkpoint.name} lacks {len(missing)} parameters of {kind.__name__}: "
            f"{_listed(missing)}",
            hint="this checkpoint was made for another task; use a retrieval (ITM) checkpoint",
        )
    if checkpoint.adapter is not None:
        model = apply_adapter(model, checkpoint.adapter)
    ready: Model = model.eval()
    return ready


def all_tensors(path: "Path") -> "dict[str, Tensor]":
    """All tensors of a checkpoint's files."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        safe = file.suffix == ".safetensors"
        tensors |= load_file(file) if safe else read_tensors(file)
    return tensors


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


def load_tokenizer(kind: type[Tokenizer], checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's tokenizer.

    Raises:
        CheckpointInvalid: there is none, or it knows almost no words. (transformers builds a
            five-token tokenizer in silence where the vocabulary is missing.)
    """
    files = [checkpoint.path / name for name in ("tokenizer.json", "vocab.txt")]
    if not any(file.is_file() for file in files):
        raise CheckpointInvalid(
            f"{checkpoint.name} has no tokenizer", hint="expected tokenizer.json or vocab.txt"
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
    return tokenizer


def vocabulary_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Digest of a tokenizer's words and ids."""
    return digest(sorted(tokenizer.get_vocab().items()))
