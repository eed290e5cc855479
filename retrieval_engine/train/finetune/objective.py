"""What the loop knows of a task: its losses, where the run stands, and how numbers are computed."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from retrieval_engine.models.device import pick_dtype
from retrieval_engine.train.finetune.captioned import CaptionedImages, Group
from retrieval_engine.train.finetune.config import FinetuneConfig
from retrieval_engine.train.finetune.distributed import Processes
from retrieval_engine.train.finetune.vision_states import Loader


class Arithmetic:
    """The context of a forward pass: autocast, and random numbers that step and place decide.

    Args:
        device: where it runs.
        dtype: under autocast; float32 switches it off.
        seed: of dropout.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self._device, self._dtype, self._seed = device, dtype, seed

    def __call__(self, step: int, place: int) -> AbstractContextManager[object]:
        """For a forward pass that can be repeated exactly."""
        state = np.random.SeedSequence((self._seed, step, place)).generate_state(1)
        torch.manual_seed(int(state[0]))
        return self.plain()

    def plain(self) -> AbstractContextManager[object]:
        """Autocast alone; random numbers are left as they are."""
        enabled = self._dtype != torch.float32
        return torch.autocast(
            self._device.type, self._dtype if enabled else torch.bfloat16, enabled=enabled
        )


class TaskObjective(ABC):
    """What a task minimises and what it is judged by.

    Args:
        learner: what is trained, adapters included.
        loader: gives states.
        config: the recipe.
        processes: who shares a batch.
        arithmetic: context of every forward pass.

    Attributes:
        metric: name of the figure the best weights are chosen by.
        higher_is_better: of that figure.
    """

    metric: str
    higher_is_better: bool

    def __init__(
        self,
        learner: Any,
        loader: Loader,
        config: FinetuneConfig,
        processes: Processes,
        arithmetic: Arithmetic,
    ) -> None:
        self._learner, self._loader, self._config = learner, loader, config
        self._processes, self._arithmetic = processes, arithmetic

    def parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained beside the model's own."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside parameters."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  nothing is kept
        """Take up what `state_dict` gave."""

    @abstractmethod
    def prepare(self, data: CaptionedImages, group: Group, loaded: NDArray[Any]) -> Any:
        """A batch of this process, tokens included; runs in another thread."""

    @abstractmethod
    def step(self, batch: Any, step: int, *, along: float, scale: float) -> dict[str, float]:
        """Add the gradients of a batch to the parameters.

        Args:
            batch: of this process.
            step: decides what is drawn, with the seed.
            along: passes done, as a fraction.
            scale: of the gradients.

        Returns:
            The losses by name, over all processes.
        """

    @abstractmethod
    def validate(self, data: CaptionedImages) -> dict[str, float]:
        """Figures on held-out images, by name; `metric` is among them."""


@dataclass(slots=True, kw_only=True)
class FinetuneState:
    """Where a run stands, besides weights and optimiser.

    Attributes:
        step: steps done.
        seconds: training time over all sessions, validation excluded.
        start: figures before the first step.
        best: figures of the best weights.
        best_step: when they were reached.
        stale: validations since then.
        skipped: steps that were none, because gradients overflowed float16.
    """

    step: int = 0
    seconds: float = 0.0
    start: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    stale: int = 0
    skipped: int = 0

    def improves(self, found: dict[str, float], metric: str, *, higher_is_better: bool) -> bool:
        """Take note of a validation; True when these weights are the best so far.

        Args:
            found: its figures.
            metric: the one that decides.
            higher_is_better: which way.
        """
        best = self.best.get(metric)
        sign = 1 if higher_is_better else -1
        if best is not None and sign * found[metric] <= sign * best:
            self.stale += 1
            return False
        self.best, self.best_step, self.stale = found, self.step, 0
        return True


def training_dtype(name: str, device: torch.device) -> torch.dtype:
    """As `pick_dtype`, but `auto` is bfloat16 on CUDA: float16 needs its losses scaled."""
    if name == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return pick_dtype(name, device)
