"""Recall on the validation set: what a training of heads selects on."""

from dataclasses import dataclass

from torch import Tensor

from retrieval_engine.metrics.recall import KS, RecallReport, recall
from retrieval_engine.records import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ValRecall:
    """Recall in percent at 1, 5 and 10, and the mean reciprocal rank of both directions."""

    image_to_text: tuple[float, ...]
    text_to_image: tuple[float, ...]
    reciprocal: float

    @classmethod
    def of(cls, report: RecallReport) -> "ValRecall":
        """What of a report decides which weights are kept."""
        return cls(
            image_to_text=tuple(report.image_to_text.recall.values()),
            text_to_image=tuple(report.text_to_image.recall.values()),
            reciprocal=report.mean_reciprocal_rank,
        )

    @property
    def mean(self) -> float:
        """Mean of the six recalls."""
        return sum(self.image_to_text + self.text_to_image) / (2 * len(KS))

    @property
    def rank(self) -> tuple[float, float]:
        """What is larger for a better head; the reciprocal rank decides between equal recalls."""
        return round(self.mean, 6), self.reciprocal

    def figures(self) -> dict[str, float]:
        """`mean_recall`, and the recall of each direction as `text_to_image@1`, …, in per cent."""
        sides = ("text_to_image", "image_to_text")
        each = {
            f"{side}@{k}": value
            for side in sides
            for k, value in zip(KS, getattr(self, side), strict=True)
        }
        return {"mean_recall": self.mean, **each}

    def to_json(self) -> dict[str, Json]:
        """In the form of a recall report's JSON."""

        def side(values: tuple[float, ...]) -> dict[str, Json]:
            return {f"R@{k}": round(v, 3) for k, v in zip(KS, values, strict=True)}

        return {
            "image_to_text": side(self.image_to_text),
            "text_to_image": side(self.text_to_image),
            "mean_recall": round(self.mean, 3),
        }


def val_recall(images: Tensor, texts: Tensor, image: Tensor) -> ValRecall:
    """Recall of every text against every image, where the tensors lie.

    Args:
        images: (n, q, d) or (n, d).
        texts: (m, d).
        image: (m,) row of each text's image.
    """
    left, right = (side.float().cpu().numpy() for side in (images, texts))
    return ValRecall.of(recall(left, right, image.cpu().numpy(), device=str(images.device)))
