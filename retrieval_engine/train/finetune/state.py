"""Where a run stands."""

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class State:
    """Where a run stands, besides weights and optimiser.

    Attributes:
        step: steps done.
        seconds: training time over all sessions, validation excluded.
        start: figures before the first step.
        best: figures of the best weights.
        best_step: when they were reached.
        stale: validations since then.
    """

    step: int = 0
    seconds: float = 0.0
    start: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    stale: int = 0
