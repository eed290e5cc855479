"""What a pretraining came to: its report, its record in training.json, and the curves of its log."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from torch import Tensor

from retrieval_engine.records import Json
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


class CaptionedPictures(Protocol):
    """Pictures with captions, as the record counts them."""

    @property
    def captions(self) -> Sequence[str]:
        """All texts."""

    @property
    def failures(self) -> Sequence[str]:
        """A line for each picture that could not be read."""

    def __len__(self) -> int: ...


def record(
    report: PretrainReport,
    settings: Mapping[str, Json],
    changed: Mapping[str, Json],
    data: CaptionedPictures,
    temperature: Tensor,
) -> dict[str, Json]:
    """The settings and figures of a run, for training.json and the model card.

    Args:
        report: what it came to.
        settings: all of them.
        changed: those that a command that does the same must give.
        data: what it was trained on.
        temperature: of the contrastive loss.
    """
    return {
        "config": dict(settings),
        "changed": dict(changed),
        "report": {k: v for k, v in asdict(report).items() if k != "out"},
        "items": len(data),
        "captions": len(data.captions),
        "unreadable": len(data.failures),
        "temperature": round(float(temperature.detach()), 5),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }
