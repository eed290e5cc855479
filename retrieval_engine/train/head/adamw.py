"""AdamW (Loshchilov and Hutter, ICLR 2019) without torch's compiler."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


@dataclass(slots=True)
class Moments:
    """What is kept of a parameter from step to step, the number of steps in it."""

    mean: Tensor
    square: Tensor
    steps: Tensor


class AdamW:
    """`torch.optim.AdamW(fused=True)` under a `LambdaLR`: the same kernel, equal to it bit by bit.

    Torch's object imports `torch._dynamo` before its first step, and with it SymPy: longer than
    a small head trains.

    Args:
        parameters: of the head.
        rate: learning rate of each step, from 0 on.
        weight_decay: as there.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        rate: Callable[[int], float],
        weight_decay: float,
    ) -> None:
        self._parameters = list(parameters)
        self._rate, self._decay = rate, weight_decay
        self._kept: dict[nn.Parameter, Moments] = {}
        self._step = 0

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters that have a gradient, and take it from them."""
        moved = [p for p in self._parameters if p.grad is not None]
        for p in moved:
            if p not in self._kept:
                steps = torch.zeros((), dtype=torch.float32, device=p.device)
                self._kept[p] = Moments(torch.zeros_like(p), torch.zeros_like(p), steps)
        kept = [self._kept[p] for p in moved]
        adamw(
            [*moved],
            [p.grad for p in moved if p.grad is not None],
            [k.mean for k in kept],
            [k.square for k in kept],
            [],
            [k.steps for k in kept],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._rate(self._step),
            weight_decay=self._decay,
            eps=1e-8,
            maximize=False,
        )
        self._step += 1
        for p in moved:
            p.grad = None
