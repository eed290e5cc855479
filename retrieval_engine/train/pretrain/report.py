"""What a pretraining came to: its report, its record in training.json, and the curves of its log."""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from retrieval_engine.records import Json
from retrieval_engine.train.pretrain.config import PretrainConfig
from retrieval_engine.train.pretrain.model import PretrainModel
from retrieval_engine.train.pretrain.training_set import TrainingSet
from retrieval_engine.train.runlog import Panel

CURVES = (
    Panel(names=("itc", "itm", "lm", "concept", "region"), label="loss"),
    Panel(
        names=("text_to_image@1", "text_to_image@10", "image_to_text@1", "mean_recall"),
        label="recall on held-out items, per cent",
        top=100,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainReport:
    """What a run came to.

    Attributes:
        out: directory of the model.
        steps: steps done.
        minutes: training time, validation and drawing excluded.
        best_step: the step whose weights were written.
        mean_recall: on the held-out items, per cent.
        parameters: number of weights.
    """

    out: Path
    steps: int
    minutes: float
    best_step: int
    mean_recall: float
    parameters: int


def record(
    report: PretrainReport, config: PretrainConfig, data: TrainingSet, model: PretrainModel
) -> dict[str, Json]:
    """The settings and figures of a run, for training.json and the model card."""
    default = PretrainConfig(source=config.source).to_json()
    settings = config.to_json()
    counted = "steps" if config.epochs else ""  # epochs say it
    return {
        "config": settings,
        "changed": {k: v for k, v in settings.items() if v != default[k] and k != counted},
        "report": {k: v for k, v in asdict(report).items() if k != "out"},
        "items": len(data),
        "captions": len(data.captions),
        "unreadable": len(data.pictures.failures),
        "temperature": round(float(model.temperature.detach()), 5),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }
