"""What a sweep tries: which settings, between which bounds, judged by which figure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from retrieval_engine.errors import UsageError
from retrieval_engine.fingerprint import digest
from retrieval_engine.records import Json

LOWER_IS_BETTER = ("caption_loss",)
"""Validation figures of which the lower is the better; of all others the higher is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low: the smallest.
        high: the largest.
        log: drawn evenly in the logarithm.
        step: distance between the numbers that are tried; 0 tries any. Not with `log`.
        whole: integers.
    """

    low: float
    high: float
    log: bool = False
    step: float = 0.0
    whole: bool = False

    def __post_init__(self) -> None:
        """Refuse a span that holds nothing to choose from.

        Raises:
            UsageError: it says what is wrong.
        """
        if not self.low < self.high:
            raise UsageError(f"low = {self.low:g} is not below high = {self.high:g}")
        if self.log and self.low <= 0:
            raise UsageError(f"low = {self.low:g} has no logarithm: it must be above 0")
        if self.step < 0 or (self.step and self.log):
            raise UsageError("step must be above 0, and goes not with log")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """One sweep. Two equal plans on the same data try the same settings in the same order.

    Attributes:
        training: what is run, e.g. `train-head`.
        fixed: settings that every trial has.
        search: settings that are tried: numbers of a span, or one of several values.
        objective: validation figure that is made as good as can be.
        trials: how many; failed ones count.
        seed: of what is tried, not of the training.
        pruning: end a trial early that validates worse than the median of those before it.
    """

    training: str
    fixed: Mapping[str, Json]
    search: Mapping[str, Span | tuple[Json, ...]] = field(default_factory=dict)
    objective: str = "mean_recall"
    trials: int = 20
    seed: int = 0
    pruning: bool = True

    def __post_init__(self) -> None:
        """Refuse a plan without trials, or with nothing to search.

        Raises:
            UsageError: it says what is wrong.
        """
        if self.trials < 1:
            raise UsageError(f"`trials` is {self.trials}, must be at least 1")
        if not self.search:
            raise UsageError("there is nothing to search", hint="name settings under [search]")
        if twice := sorted(self.fixed.keys() & self.search.keys()):
            raise UsageError(f"{twice[0]} is both fixed and searched")

    @property
    def maximize(self) -> bool:
        """Whether more of the objective is better."""
        return self.objective not in LOWER_IS_BETTER

    def to_json(self) -> dict[str, Json]:
        """The plan as JSON values."""
        search = {
            name: asdict(tried) if isinstance(tried, Span) else list(tried)
            for name, tried in self.search.items()
        }
        return {**asdict(self), "fixed": dict(self.fixed), "search": search}

    @property
    def identity(self) -> str:
        """Digest of all but the number of trials, of which more may be wanted later."""
        return digest({n: value for n, value in self.to_json().items() if n != "trials"})
