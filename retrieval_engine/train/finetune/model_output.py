"""What a run leaves: the model or adapter, its record, its log and the plot of it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from retrieval_engine.durable import writing
from retrieval_engine.fingerprint import digest
from retrieval_engine.models import open_encoder
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.models.checkpoint import Checkpoint, tensor_shapes
from retrieval_engine.models.checksums import CHECKSUMS, write_checksums
from retrieval_engine.models.write_checkpoint import write_json
from retrieval_engine.records import Json
from retrieval_engine.strict_json import loads
from retrieval_engine.train.finetune.captioned import Sets
from retrieval_engine.train.finetune.config import FinetuneConfig, Task
from retrieval_engine.train.finetune.objective import FinetuneState
from retrieval_engine.train.lora import LoraOptions, base_name, save_adapter
from retrieval_engine.train.model_files import trained_tensors, write_model
from retrieval_engine.train.runlog import Panel, draw_curves


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """How many of a model's weights are trained.

    Attributes:
        parameters: number of trained weights, as peft counts them.
        total: of all weights of the model, those of a tower that is not loaded included.
    """

    parameters: int
    total: int

    @property
    def percent(self) -> float:
        """Share of the weights that is trained, in per cent."""
        return 100 * self.parameters / self.total

    def __str__(self) -> str:
        return f"training {self.parameters:,} of {self.total:,} weights ({self.percent:.4f} %)"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneReport:
    """What a fine-tuning came to.

    Attributes:
        out: directory of the model or adapter.
        steps: steps done.
        best_step: the step whose weights were written.
        seconds: training time, validation excluded.
        start: figures on held-out images before the first step.
        final: the same of the weights that were written.
        trainable: how much was trained.
        fingerprint: of the model that was written, as `open_encoder` or a captioner opens it.
    """

    out: Path
    steps: int
    best_step: int
    seconds: float
    start: Mapping[str, float]
    final: Mapping[str, float]
    trainable: Counted
    fingerprint: str

    def to_json(self) -> dict[str, Json]:
        """The report as one JSON object."""
        value = {f.name: getattr(self, f.name) for f in fields(self)}
        trained = {"parameters": self.trainable.parameters}
        percent = {"percent": round(self.trainable.percent, 4)}
        return value | {"out": str(self.out), "trainable": trained | percent}


class Output:
    """Writes the directory of a fine-tuning: model or adapter, record, samples, plot.

    Args:
        config: of the run.
        base: what it started from.
        out: the directory.
        sets: what it was trained on.
        wrapped: the `peft.PeftModel`, or None where the weights themselves are trained.
        prompt: what captions were trained to go on from; None where no captions are.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        base: Checkpoint,
        out: Path,
        sets: Sets,
        wrapped: Any,
        *,
        prompt: str | None = None,
    ) -> None:
        self._config, self._base, self._out, self._prompt = config, base, out, prompt
        self._sets, self._wrapped = sets, wrapped
        self._counted: Counted | None = None

    def counted(self, model: nn.Module | None = None) -> Counted:
        """How much is trained; the model is needed at the first call."""
        if self._counted is None:
            assert model is not None
            parameters = list(model.parameters())
            trained = sum(p.numel() for p in parameters if p.requires_grad)
            total = sum(p.numel() for p in parameters)
            if not any(name.startswith("vision_model.") for name, _ in model.named_parameters()):
                total += sum(
                    math.prod(shape)
                    for name, shape in tensor_shapes(self._base.path).items()
                    if name.startswith("vision_model.") and not name.endswith("position_ids")
                )
            self._counted = Counted(parameters=trained, total=total)
        return self._counted

    def write(self, folder: Path, model: nn.Module) -> Path:
        """Write what was trained as it stands; the directory that can be opened."""
        if self._wrapped is None:
            write_model(self._base.path, trained_tensors(model), folder)
            if self._prompt is not None:
                _say_prompt(folder, self._prompt)
            return folder
        config = self._config
        facts: dict[str, Json] = {
            "task": str(config.task),
            "lora": asdict(LoraOptions.parse(config.lora)),
        }
        return save_adapter(
            self._wrapped, folder, self._base, name=config.adapter_name, facts=facts
        )

    def log_samples(self, step: int, samples: Mapping[str, str]) -> None:
        """Add captions written at a step to `samples.jsonl`."""
        path = self._out / "samples.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **samples}, ensure_ascii=False) + "\n")

    def finish(self, state: FinetuneState, model: nn.Module) -> FinetuneReport:
        """Write the best weights and the record of the run; opens what was written."""
        folder = self.write(self._out, model)
        opener = open_encoder if self._config.task is Task.RETRIEVAL else open_captioner
        opened: Any = opener(str(folder), device=self._config.device)
        report = FinetuneReport(
            out=self._out,
            steps=state.step,
            best_step=state.best_step,
            seconds=round(state.seconds, 2),
            start=state.start,
            final=state.best,
            trainable=self.counted(),
            fingerprint=opened.spec.fingerprint,
        )
        draw_curves(self._out / "log.jsonl", self._out / "curves.png", CURVES)
        # The last thing written: where it is, the run is complete.
        write_json(self._out / "training.json", self._record(report))
        return report

    def _record(self, report: FinetuneReport) -> dict[str, Json]:
        """What an evaluation compares a gallery with, and all settings and figures."""
        train = self._sets.train
        ids, keys = sorted(train.ids), sorted(set(train.keys))
        return {
            "task": str(self._config.task),
            "base": base_name(self._base),
            "config": self._config.to_json(),
            "report": {k: v for k, v in report.to_json().items() if k != "out"},
            "data": self._sets.how,
            "captions": len(train.texts),
            "ids_digest": digest(list(ids)),
            "ids": list(ids),
            "keys": list(keys),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        }


def _say_prompt(folder: Path, prompt: str) -> None:
    """Write down what the captions were trained to go on from."""
    file = folder / "generation_config.json"
    said = loads(file.read_bytes()) if file.is_file() else {}
    write_json(file, said | {"prompt": prompt})
    write_checksums(folder, [file.name, *loads((folder / CHECKSUMS).read_bytes())["sha256"]])


CURVES = (
    Panel(names=("itc", "itm", "lm", "caption_loss"), label="loss"),
    Panel(
        names=(
            *("text_to_image@1", "text_to_image@10", "image_to_text@1", "mean_recall"),
            *("cider", "bleu4"),
        ),
        label="on held-out images: recall in per cent, CIDEr, BLEU-4",
    ),
)
