"""Exact recall of held-out images and captions, for choosing the best weights of a run."""

import torch
from torch import Tensor

CUTOFFS = (1, 5, 10)
_ROWS = 512


def recall(images: Tensor, texts: Tensor, owner: Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions, and the mean of the six, in per cent.

    A score is the maximum over an image's vectors; of equal scores the lower index comes first; any
    caption of an image counts for it.

    Args:
        images: (n, q, d) float32.
        texts: (m, d) float32.
        owner: (m,) int64 image of each text.
    """
    scores = torch.cat(
        [
            torch.einsum("nqd,td->tnq", images, texts[start : start + _ROWS]).amax(-1)
            for start in range(0, len(texts), _ROWS)
        ]
    )  # (m, n)
    own = scores.gather(1, owner[:, None])
    before = torch.arange(len(images))[None] < owner[:, None]
    text_ranks = ((scores > own) | ((scores == own) & before)).sum(1)
    order = scores.argsort(dim=0, descending=True, stable=True)  # (m, n)
    ranks = torch.empty_like(order).scatter_(
        0, order, torch.arange(len(texts))[:, None].expand_as(order)
    )
    best = torch.full((len(images),), len(texts))
    best = best.scatter_reduce(0, owner, ranks.gather(1, owner[:, None])[:, 0], "amin")
    found: dict[str, float] = {}
    for name, of in (("text_to_image", text_ranks), ("image_to_text", best)):
        for k in CUTOFFS:
            found[f"{name}@{k}"] = 100 * float((of < k).double().mean())
    mean = sum(found.values()) / len(found)
    return {"mean_recall": mean, **found}
