"""Which rows of a batch of sentences go on; b sentences of an image lie side by side."""

import torch
from torch import Tensor


def rows_of(ids: Tensor, parents: Tensor | None, sentences: int) -> Tensor | None:
    """(n b,) rows of the step before that each sentence goes on with; None when all stay.

    Args:
        ids: (n, b) the tokens chosen.
        parents: see `Writing.step`.
        sentences: b of the step before.
    """
    n, b = ids.shape
    if parents is None and b == sentences:
        return None
    chosen = torch.zeros_like(ids) if parents is None else parents
    first = torch.arange(n, device=ids.device)[:, None] * sentences
    return (first + chosen).view(-1)


def rows_of_images(images: Tensor, sentences: int) -> Tensor:
    """(m b,) rows of all sentences of some images."""
    own = torch.arange(sentences, device=images.device)
    return (images[:, None] * sentences + own).view(-1)
