"""Training on several devices: what is gathered, and how gradients are added up.

Each process runs its share of a batch. The contrastive loss is computed from the gathered vectors
in every process alike, the other losses are divided by counts over all processes; so the sum of the
processes' gradients is the gradient of one process with the whole batch, and no more than that is
exchanged. Start it with torchrun.
"""

import os
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from retrieval_engine.models.device import pick_device

Value = TypeVar("Value")


class Processes:
    """The processes of a run; one when it was not started by torchrun.

    Args:
        device: as in `open_encoder`; with several processes each takes its own CUDA device.

    Attributes:
        rank: number of this process.
        size: number of processes.
        device: of this process.
    """

    def __init__(self, device: str) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = pick_device(device)
        if self.size > 1:
            from accelerate import PartialState

            # accelerate knows the backend of each kind of device, and which device is ours.
            state = PartialState(cpu=self.device.type == "cpu")
            self.device = state.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` rows, which `size` divides."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, mine: Tensor) -> Tensor:
        """The rows of all processes in their order, without gradient; all have equal shapes."""
        if self.size == 1:
            return mine.detach()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        torch.distributed.all_gather(parts, mine.detach().contiguous())
        return torch.cat(parts)

    def all_reduce(self, value: float) -> float:
        """Sum of a number over the processes."""
        if self.size == 1:
            return value
        both = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(both)
        return float(both)

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes."""
        if self.size == 1:
            return
        ours = list(parameters)
        for parameter in ours:  # one that this process did not use is zero here, not absent
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten().float() for p in ours if p.grad is not None])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [p.numel() for p in ours])
        for parameter, part in zip(ours, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def broadcast(self, value: Value) -> Value:
        """What the first process gives, in every process; it can be any object."""
        found = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(found, src=0)
        return found[0]

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def end(self) -> None:
        """Leave the process group."""
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
