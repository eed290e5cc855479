"""The contrastive losses of BLIP's and BLIP-2's authors, as plain functions of tensors."""

import torch
from torch import Tensor


def itc_momentum(
    fast: tuple[Tensor, Tensor],
    slow: tuple[Tensor, Tensor],
    positive: Tensor,
    *,
    temperature: Tensor,
    alpha: float,
) -> Tensor:
    """BLIP's contrastive loss; `BLIP_Retrieval.forward` of the authors.

    Args:
        fast: (b, d) images and texts of the model.
        slow: (c, d) images and texts of the momentum copy, the batch's own first.
        positive: (b, c) bool: the same image.
        temperature: scalar.
        alpha: weight of the copy's opinion in the targets.
    """
    b = len(positive)
    given = positive.float() / positive.sum(1, keepdim=True)
    losses = []
    for own, others in ((0, slow[1]), (1, slow[0])):
        with torch.no_grad():
            opinion = (slow[own][:b] @ others.T / temperature).softmax(1)
            target = alpha * opinion + (1 - alpha) * given
        scores = fast[own] @ others.T / temperature
        losses.append(-(target * scores.log_softmax(1)).sum(1).mean())
    return (losses[0] + losses[1]) / 2


def itc_in_batch(scores: Tensor, same: Tensor, smoothing: float) -> Tensor:
    """BLIP-2's contrastive loss with image ids; `Blip2Qformer.forward` of LAVIS.

    Args:
        scores: (b, b) of images and texts, over the temperature.
        same: (b,) number of each pair's image.
        smoothing: of the targets.
    """
    positive = (same[:, None] == same[None]).float()
    target = positive / positive.sum(1, keepdim=True)
    target = (1 - smoothing) * target + smoothing / len(scores)
    to_text = -(target * scores.log_softmax(1)).sum(1).mean()
    to_image = -(target * scores.T.log_softmax(1)).sum(1).mean()
    return (to_text + to_image) / 2
