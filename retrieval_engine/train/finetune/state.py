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
