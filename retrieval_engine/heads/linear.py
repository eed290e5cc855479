"""The linear projection."""

import torch
from torch import Tensor, nn

from retrieval_engine.heads.projection import Projection


class LinearProjection(Projection):
    """x @ weight.T + bias.

    Args:
        width: of the input.
        dim: of the output.
        bias: whether there is one.
    """

    def __init__(self, width: int, dim: int, *, bias: bool = True) -> None:
        super().__init__(width, dim)
        self.linear = nn.Linear(width, dim, bias=bias)

    def net(self, x: Tensor) -> Tensor:
        """See `Projection`."""
        out: Tensor = self.linear(x)
        return out

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """See `Projection`; a projection without a bias drops it."""
        self.linear.weight.copy_(weight)
        if self.linear.bias is not None:
            self.linear.bias.copy_(bias)
