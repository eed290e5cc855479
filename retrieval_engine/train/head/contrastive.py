"""Contrastive losses over a batch of images and captions of which many may belong together."""

import torch
from torch import Tensor
from torch.nn import functional

_EXCLUDED = -1e4  # finite: a row without negatives must not give NaN gradients


def info_nce(logits: Tensor, positive: Tensor) -> Tensor:
    """Symmetric InfoNCE in which a positive competes with negatives only.

    Each true pair has its own softmax against all that is no positive: -log(e^s / (e^s + sum over
    negatives)). The usual sum would hold the image's other captions too, and push them away.
    Averaged over an image's captions, then over images; and likewise from the captions' side.

    Args:
        logits: (b, u) scaled scores.
        positive: (b, u) bool, at least one in each row and column.
    """
    negatives = logits.masked_fill(positive, _EXCLUDED)
    image, text = positive.nonzero(as_tuple=True)
    true = logits[image, text]
    per_image = positive.sum(1)[image] * len(logits)
    per_text = positive.sum(0)[text] * logits.shape[1]
    to_text = functional.softplus(negatives.logsumexp(1)[image] - true) / per_image
    to_image = functional.softplus(negatives.logsumexp(0)[text] - true) / per_text
    return (to_text.sum() + to_image.sum()) / 2


def sigmoid(logits: Tensor, positive: Tensor) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, Zhai et al., ICCV 2023), summed over an image's pairs.

    Args:
        logits: (b, u) scaled scores, offset added.
        positive: (b, u) bool.
    """
    signs = positive.to(logits.dtype) * 2 - 1
    return -functional.logsigmoid(signs * logits).sum() / len(logits)


def diagonal(logits: Tensor) -> Tensor:
    """Plain symmetric cross-entropy of (b, b) logits: the k-th caption belongs to image k."""
    target = torch.arange(len(logits), device=logits.device)
    return (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2
