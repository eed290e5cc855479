"""The losses of the pretraining, as plain functions of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def itc_loss(scores: Tensor, true: Tensor) -> Tensor:
    """Contrastive loss with several positives (ALBEF's ITC; targets as in Yang et al., UniCL).

    Args:
        scores: (t, b) float32 inner products of t texts and b pictures over the temperature.
        true: (t, b) bool, whether the text is true of the picture; each row and column has one.

    Returns:
        Mean of both directions. A true pair is never pushed apart: the captions of one picture,
        and captions that are true of another one, share the target evenly.
    """
    targets = true.to(scores.dtype)
    to_image = -(targets / targets.sum(1, keepdim=True) * scores.log_softmax(1)).sum(1).mean()
    to_text = -(targets / targets.sum(0, keepdim=True) * scores.log_softmax(0)).sum(0).mean()
    return (to_image + to_text) / 2


def caption_loss(logits: Tensor, labels: Tensor, *, smoothing: float) -> Tensor:
    """Cross entropy of each next token; labels of -100 are left out.

    Args:
        logits: (b, l, v).
        labels: (b, l); position i holds the id that `logits[:, i - 1]` should give.
        smoothing: label smoothing.
    """
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=smoothing
    )


def concept_loss(logits: Tensor, present: Tensor, known: Tensor) -> Tensor:
    """Binary cross entropy over concepts, summed over those that are known.

    Args:
        logits: (b, c).
        present: (b, c) 0 or 1.
        known: (b, c) 0 or 1; a concept that cannot be seen (a colour in a grey picture) is 0.

    Returns:
        The sum over concepts, averaged over pictures and scaled by ten over c, so that its size
        does not depend on how many concepts a source has.
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), present, reduction="none")
    return (each * known).sum(1).mean() * (10.0 / logits.shape[1])


def region_loss(logits: Tensor, classes: Tensor, aspects: Sequence[int]) -> Tensor:
    """Cross entropy of each patch's class, summed over aspects; -100 is left out.

    Args:
        logits: (b, p, sum of `aspects`).
        classes: (b, a, p) int64.
        aspects: number of classes of each of the a aspects.
    """
    parts = torch.split(logits.float(), list(aspects), dim=-1)
    each = [
        F.cross_entropy(part.flatten(0, 1), classes[:, i].flatten()) for i, part in enumerate(parts)
    ]
    return torch.stack(each).sum()
