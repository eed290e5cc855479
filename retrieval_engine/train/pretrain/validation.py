"""Exact recall on held-out items, for choosing the best weights of a run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval_engine.metrics.recall import RecallReport, recall
from retrieval_engine.records import Json

if TYPE_CHECKING:
    from retrieval_engine.train.pretrain.batches import BatchMaker
    from retrieval_engine.train.pretrain.model import PretrainModel
    from retrieval_engine.train.pretrain.texts import Texts
    from retrieval_engine.train.pretrain.training_set import TrainingSet

_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What the weights of a moment are worth.

    Attributes:
        recall: of captions and pictures.
        concept_precision: mean average precision of the concepts, 0-1: how well the image state
            alone tells what is in a picture.
    """

    recall: RecallReport
    concept_precision: float

    def __str__(self) -> str:
        one, ten = (self.recall.text_to_image.recall[k] for k in (1, 10))
        return (
            f"mean recall {self.recall.mean_recall:.1f} (text to image R@1 {one:.1f}, R@10 {ten:.1f}), "
            f"concepts {self.concept_precision:.3f}"
        )

    def to_json(self) -> dict[str, Json]:
        """One flat line for the log."""
        line: dict[str, Json] = {"mean_recall": round(self.recall.mean_recall, 3)}
        for name in ("text_to_image", "image_to_text"):
            for k, value in getattr(self.recall, name).recall.items():
                line[f"{name}@{k}"] = round(value, 3)
        return line | {"concept_precision": round(self.concept_precision, 4)}


@torch.no_grad()
def validate(
    model: "PretrainModel", data: "TrainingSet", texts: "Texts", batcher: "BatchMaker"
) -> Validation:
    """Figures of a model on held-out items, without augmentation and in float32.

    Args:
        model: in training; it is left in training.
        data: the held-out items.
        texts: their captions.
        batcher: for its normalisation and its device.
    """
    model.eval()
    images, concepts, captions = [], [], []
    for start in range(0, len(data), _ROWS):
        pixels = torch.tensor(data.pictures.pixels[start : start + _ROWS]).permute(0, 3, 1, 2)
        states = model.see(batcher.normalise(pixels.float() / 255))
        images.append(model.embed_images(states).cpu().numpy())
        concepts.append(model.concept_head(states[:, 0]).float().cpu().numpy())
    for start in range(0, len(data.captions), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(data.captions)))
        tokens = texts.of(rows, mirrored=False).to(batcher.device)
        captions.append(model.embed_texts(tokens.ids, tokens.mask).cpu().numpy())
    model.train()
    return Validation(
        recall=recall(np.concatenate(images), np.concatenate(captions), data.owner),
        concept_precision=_mean_average_precision(np.concatenate(concepts), data.present),
    )


def _mean_average_precision(scores: NDArray[np.float32], present: NDArray[np.uint8]) -> float:
    """Over the concepts that some picture has."""
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(present, order, 0).astype(np.float64)
    precision = hits.cumsum(0) / np.arange(1, len(hits) + 1)[:, None]
    counts = hits.sum(0)
    found = counts > 0
    return float(((precision * hits).sum(0)[found] / counts[found]).mean()) if found.any() else 0.0
