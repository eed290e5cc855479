"""One side of a head: what both kinds of projection have in common."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn


class Projection(nn.Module, ABC):
    """(…, width) stored features -> (…, dim), not normalised.

    The input is standardised by numbers taken from the training set, so that features of any
    scale are learned at the same pace. They are part of the saved head.

    Args:
        width: of the input.
        dim: of the output.
    """

    if TYPE_CHECKING:
        mean: Tensor
        scale: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.width = width
        self.dim = dim
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def standardise(self, mean: Tensor, scale: Tensor) -> None:
        """From now on map x to (x - mean) * scale before anything else; both (width,)."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) of any floating dtype -> (…, dim)."""
        out: Tensor = self.net((x - self.mean) * self.scale)
        return out

    @abstractmethod
    def net(self, x: Tensor) -> Tensor:
        """(…, width) standardised -> (…, dim)."""

    @abstractmethod
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """Compute x @ weight.T + bias of standardised x from now on.

        Args:
            weight: (dim, width); the rows that matter most come first.
            bias: (dim,).
        """
