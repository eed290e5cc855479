"""Negatives for a matching loss, drawn from the batch."""

import torch
from torch import Tensor


def draw_negatives(
    scores: Tensor, allowed: Tensor, hardness: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One negative for each row, from uniform (hardness 0) to as likely as the scores say (1).

    Args:
        scores: (r, c) similarities over temperature, without gradient.
        allowed: (r, c) bool: which columns are false for the row.
        hardness: 0 to 1.
        generator: on the CPU, so that the draw is the same on every device.

    Returns:
        (r,) int64 columns, and (r,) bool: whether the row has a negative at all.
    """
    usable = allowed.any(1)
    logits = (scores.float().cpu() * hardness).masked_fill(~allowed.cpu(), -torch.inf)
    weights = torch.where(usable.cpu()[:, None], logits, torch.zeros_like(logits)).softmax(1)
    drawn = torch.multinomial(weights, 1, generator=generator)[:, 0]
    return drawn.to(scores.device), usable
