"""What the loop knows of a task."""

from typing import Any, Protocol

from numpy.typing import NDArray
from torch import nn

from retrieval_engine.train.finetune.captioned import Captioned, Group


class Objective(Protocol):
    """What a task minimises and what it is judged by.

    Attributes:
        metric: name of the figure the best weights are chosen by.
        higher_is_better: of that figure.
    """

    metric: str
    higher_is_better: bool

    def parameters(self) -> list[nn.Parameter]:
        """What is trained beside the model."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside parameters."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""

    def prepare(self, data: Captioned, group: Group, loaded: NDArray[Any]) -> Any:
        """A batch of this process; runs in another thread."""

    def step(self, batch: Any, step: int, *, along: float, scale: float) -> dict[str, float]:
        """Add the gradients of a batch, times `scale`, to the parameters.

        Returns:
            The losses by name, over all processes.
        """

    def validate(self, data: Captioned) -> dict[str, float]:
        """Figures on held-out images."""
