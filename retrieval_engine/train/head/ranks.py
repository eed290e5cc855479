"""Recall on the validation set, exact, on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval_engine.records import Json

CUTOFFS = (1, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValRecall:
    """Recall in percent at 1, 5 and 10, and the mean reciprocal rank of both directions."""

    image_to_text: tuple[float, ...]
    text_to_image: tuple[float, ...]
    reciprocal: float

    @property
    def mean(self) -> float:
        """Mean of the six recalls: what a training selects on."""
        return sum(self.image_to_text + self.text_to_image) / (2 * len(CUTOFFS))

    @property
    def rank(self) -> tuple[float, float]:
        """What is larger for a better head; the reciprocal rank decides between equal recalls."""
        return round(self.mean, 6), self.reciprocal

    def to_json(self) -> dict[str, Json]:
        """In the form of `vlre eval --recall --json`."""

        def side(values: tuple[float, ...]) -> dict[str, Json]:
            return {f"R@{k}": round(v, 3) for k, v in zip(CUTOFFS, values, strict=True)}

        return {
            "image_to_text": side(self.image_to_text),
            "text_to_image": side(self.text_to_image),
            "mean_recall": round(self.mean, 3),
        }


def scores(images: Tensor, texts: Tensor) -> Tensor:
    """(n, q, d) and (m, d) -> (n, m): the largest inner product over q."""
    n, q, d = images.shape
    dots = images.reshape(n * q, d) @ texts.T
    return dots if q == 1 else dots.view(n, q, -1).amax(1)


def val_recall(similarity: Tensor, image: Tensor) -> ValRecall:
    """Recall of every caption against every image.

    Args:
        similarity: (n, m) float32.
        image: (m,) row of each caption's image; every image has at least one caption.

    Returns:
        Figures in which equal scores count against the right answer.
    """
    n, m = similarity.shape
    column = torch.arange(m, device=similarity.device)
    own = similarity[image, column]
    to_image = (similarity >= own).sum(0) - 1
    best = torch.full((n,), -torch.inf, device=similarity.device)
    best = best.scatter_reduce(0, image, own, "amax")
    beaten = similarity >= best[:, None]
    beaten[image, column] = False
    to_text = beaten.sum(1)

    def side(ranks: Tensor) -> tuple[float, ...]:
        return tuple(100 * float((ranks < k).float().mean()) for k in CUTOFFS)

    reciprocal = [float((1 / (ranks + 1)).mean()) for ranks in (to_text, to_image)]
    return ValRecall(
        image_to_text=side(to_text), text_to_image=side(to_image), reciprocal=sum(reciprocal) / 2
    )
