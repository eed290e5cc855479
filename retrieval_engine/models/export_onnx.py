"""A model as ONNX graphs, for programs without torch; each is kept only if it computes the same.

    image.onnx     pixels (n, s, s, 3) uint8, resized           -> tokens, pooled, itc
    text.onnx      input_ids, attention_mask (n, l) int64        -> pooled, itc
    matcher.onnx   tokens (n, t, w), input_ids, attention_mask   -> logits (n, 2): no match, match
    decoder.onnx   tokens (n, t, w), input_ids (n, l)            -> logits (n, v) of the next token

Sizes n and l are free. The image graph normalises: it is given pixels as decoding and resizing leave
them. The decoder reads a whole sentence at each step; it keeps no past.
"""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from retrieval_engine.durable import sync_directory
from retrieval_engine.errors import (
    EncoderError,
    MissingExtra,
    UsageError,
    one_line,
)
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.onnx_graphs import TEXTS, Graph, graphs_of
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Json, Modality

PARTS = ("image", "text", "matcher", "decoder")
_TOLERANCE = 1e-4  # of the largest value
_INLINE_BYTES = 1 << 30  # weights of larger graphs lie beside them: a protobuf ends at 2 GB
_COPIED = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "preprocessor_config.json")
_TRACED, _TRIED = 2, (1, 3)  # texts and images that a graph is traced with, and is tried with


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedPart:
    """One graph.

    Attributes:
        name: one of `PARTS`.
        inputs: shape and dtype of each, the free sizes as letters.
        outputs: names.
        largest_difference: from torch, over all outputs.
        largest_value: of torch's outputs.
        bytes: of its files.
    """

    name: str
    inputs: Mapping[str, str]
    outputs: Sequence[str]
    largest_difference: float
    largest_value: float
    bytes: int


def export_onnx(
    model: str,
    out: Path,
    *,
    parts: Sequence[str] = (),
    adapter: str = "",
    progress: Progress | None = None,
) -> list[ExportedPart]:
    """Write a model's parts as float32 ONNX graphs, with its tokenizer and what is known of it.

    Args:
        model: checkpoint, as `open_encoder` and `open_captioner` take it.
        out: directory to make.
        parts: of `PARTS`; empty for all that the model has.
        adapter: for the checkpoint; it is merged.
        progress: told about each part.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
        UsageError: `out` is there, or a part is unknown or is none of the model's.
        EncoderError: a graph cannot be made, or computes something else; nothing is left.
        CheckpointNotFound, CheckpointInvalid: as `open_encoder`.
    """
    _require_packages()
    progress = progress or Silent()
    if unknown := [name for name in parts if name not in PARTS]:
        raise UsageError(f"`parts` names {', '.join(unknown)}; known: {', '.join(PARTS)}")
    if out.exists():
        raise UsageError(f"{out} is there already", hint="name a directory that is not")
    graphs = graphs_of(model, adapter)
    if lacking := [name for name in parts if name not in graphs]:
        raise UsageError(
            f"{model} has no {' and no '.join(lacking)} to export; it has {', '.join(graphs)}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        progress.start("exporting", len(parts or graphs))
        found = []
        for name in parts or graphs:
            found.append(_export(name, graphs[name], made))
            progress.advance()
        progress.stop()
        facts: dict[str, Json] = {"model": model, "adapter": adapter, **_facts(graphs)}
        facts |= {"parts": [asdict(part) for part in found]}
        (made / "vlre_onnx.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for file in _COPIED:
            if (there := resolve(model).path / file).is_file():
                shutil.copy(there, made / file)
        made.chmod(0o755)
        made.replace(out)
        sync_directory(out.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return found


def _facts(graphs: Mapping[str, Graph]) -> dict[str, Json]:
    """What must be known to feed the graphs, and whose stored features theirs are like."""
    owner = graphs["image"].owner
    forms: dict[str, Json] = {
        modality: {form.name: form.fingerprint for form in owner.features(modality).values()}
        for modality in Modality
    }
    spec, shown = owner.spec, {}
    for name, graph in graphs.items():
        given = dict(zip(graph.inputs, graph.some(1), strict=True))
        if "input_ids" in given:
            shown[name] = given["input_ids"][0].tolist()
    return {
        "fingerprints": forms,
        "dtype": "float32",
        "preprocessing": spec.preprocessing,
        "text": {"normaliser": spec.text_normaliser, "tokens_at_most": spec.text_length},
        "example": {"text": TEXTS[0], "input_ids": shown},
        "torch": torch.__version__,
    }


def _require_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            raise MissingExtra(package, "onnx") from error


class _Module(nn.Module):
    """A call as a module that has the weights of its owner."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.held = nn.ModuleList(v for v in vars(graph.owner).values() if isinstance(v, nn.Module))
        self._call = graph.call

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self._call(*inputs)


def _export(name: str, graph: Graph, folder: Path) -> ExportedPart:
    """Write one graph, and compare what it computes with torch.

    Raises:
        EncoderError: it cannot be written, or computes something else.
    """
    traced = tuple(map(torch.from_numpy, graph.some(_TRACED)))
    graph.call(*traced)  # what is loaded when it is needed is there before the weights are counted
    module = _Module(graph).eval()
    free = {letter: torch.export.Dim(letter) for letter in "nl"}
    sizes = tuple(
        {i: free[side] for i, side in enumerate(sides)} for sides in graph.inputs.values()
    )
    path = folder / f"{name}.onnx"
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                traced,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=(sizes,),
                dynamo=True,
                verbose=False,
            )
            weights = sum(p.numel() * p.element_size() for p in module.parameters())
            assert program is not None
            program.save(path, external_data=weights > _INLINE_BYTES)
    except Exception as error:  # the exporter raises what it likes
        raise EncoderError(f"{name} cannot be written as ONNX: {one_line(error)}") from error
    difference, value = _compared(path, graph)
    if not difference <= _TOLERANCE * max(value, 1.0):
        raise EncoderError(f"{name}.onnx computes something else: {difference:.2g} off {value:.2g}")
    return ExportedPart(
        name=name,
        inputs={
            key: f"({', '.join([*sides, *map(str, tensor.shape[len(sides) :])])}) {tensor.dtype}"
            for (key, sides), tensor in zip(graph.inputs.items(), graph.some(1), strict=True)
        },
        outputs=list(graph.outputs),
        largest_difference=difference,
        largest_value=value,
        bytes=sum(file.stat().st_size for file in folder.glob(f"{name}.onnx*")),
    )


@torch.no_grad()
def _compared(path: Path, graph: Graph) -> tuple[float, float]:
    """Largest difference from torch for other sizes than it was traced with; largest value."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    taken = {given.name for given in session.get_inputs()}
    difference = value = 0.0
    for n in _TRIED:
        given = graph.some(n)
        feed = {k: v for k, v in zip(graph.inputs, given, strict=True) if k in taken}
        right = graph.call(*map(torch.from_numpy, given))
        for found, wanted in zip(session.run(list(graph.outputs), feed), right, strict=True):
            difference = max(difference, float(np.abs(found - wanted.numpy()).max()))
            value = max(value, float(wanted.abs().max()))
    return difference, value


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of every operator that other packages might have brought."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
