"""Runs a sweep: one trial after another until the plan is done, whoever else works on it.

Only validation figures are looked at: those on which the trainers themselves select.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from retrieval_engine.errors import EvaluationError, TrainingError, UsageError, one_line
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Json
from retrieval_engine.train.runlog import OnValidation
from retrieval_engine.train.sweep.plan import SweepPlan
from retrieval_engine.train.sweep.report import REPORT, Row, check_plots, shown, write_report
from retrieval_engine.train.sweep.shared_study import REASON, SharedStudy

if TYPE_CHECKING:
    import optuna


class Trainer(Protocol):
    """What a sweep drives."""

    def train(self, values: Mapping[str, Json], out: Path, on_validation: OnValidation) -> int:
        """Train with these values of the searched settings.

        Args:
            values: by name.
            out: empty directory for what comes of it.
            on_validation: to be called at each validation.

        Returns:
            The step whose weights were kept.

        Raises:
            TrainingError, UsageError: these settings cannot be trained; the sweep goes on.
        """

    def command(self, values: Mapping[str, Json], out: Path) -> str:
        """A line that does the same training again, into a directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What a sweep came to.

    Attributes:
        plan: what was tried.
        rows: every trial, by number; those left behind by a process that ended are not among them.
        best: the trial with the best value.
        weights: directory of what it trained.
        command: a line that trains the same again.
        page: the report.
        elsewhere: trials that other processes have at work.
    """

    plan: SweepPlan
    rows: tuple[Row, ...]
    best: Row
    weights: Path
    command: str
    page: Path
    elsewhere: int

    def to_json(self) -> dict[str, Json]:
        """The report as one JSON object."""
        return {
            "training": self.plan.training,
            "objective": self.plan.objective,
            "best": self.best.to_json(),
            "weights": str(self.weights),
            "command": self.command,
            "report": str(self.page),
            "elsewhere": self.elsewhere,
            "trials": [row.to_json() for row in self.rows],
        }


def sweep(
    plan: SweepPlan,
    out: str | Path,
    trainer: Trainer,
    *,
    keep_all: bool = False,
    progress: Progress | None = None,
) -> SweepReport:
    """Try settings of a training, and keep what validated best.

    Given again it goes on where it stopped; several processes may be given the same directory.

    Args:
        plan: what to try.
        out: directory of the sweep: trials in `trials.sqlite`, what they trained in `trials/N`,
            and `report.html` in the end.
        trainer: trains with given values.
        keep_all: keep what every trial trained, not the best alone.
        progress: told a line about every trial.

    Raises:
        MissingExtra: optuna or matplotlib is not installed.
        TrainingError: the directory holds another sweep, or no trial came to an end.
        EvaluationError: the training does not validate by the objective.
    """
    progress, out = progress or Silent(), Path(out)
    check_plots()
    shared = SharedStudy(plan, out)
    progress.start("trials", plan.trials)
    progress.advance(sum(trial.state.is_finished() for trial in shared.counted()))
    try:
        while taken := shared.take():
            _run(shared, trainer, *taken, progress)
            if not keep_all:
                shared.clear()
            progress.advance()
        if not keep_all:
            shared.clear()  # what a process left that was killed before it could
        progress.stop()
        return _report(shared, trainer)
    finally:
        shared.close()


def _run(
    shared: SharedStudy,
    trainer: Trainer,
    trial: "optuna.Trial",
    values: Mapping[str, Any],
    progress: Progress,
) -> None:
    """One trial, from its settings to its line."""
    import torch

    watch = _Watch(shared, trial)
    began = time.monotonic()
    state, value, notes = "COMPLETE", None, dict[str, Json]()
    try:
        kept = trainer.train(values, shared.folder(trial.number), watch)
        value, notes = watch.value_at(kept), {"step": kept}
    except _Pruned:
        state = "PRUNED"
    except (TrainingError, UsageError, MemoryError, torch.OutOfMemoryError) as error:
        state, notes = "FAIL", {REASON: one_line(error)}
    notes |= {"seconds": round(time.monotonic() - began, 2), "validations": watch.validations}
    shared.settle(trial, state, value, notes)
    progress.say(_line(shared.plan, trial.number, values, state, watch, value, notes))


def _line(
    plan: SweepPlan,
    number: int,
    values: Mapping[str, Json],
    state: str,
    watch: "_Watch",
    value: float | None,
    notes: Mapping[str, Json],
) -> str:
    tried = ", ".join(f"{name} {shown(each)}" for name, each in values.items())
    ends = {
        "COMPLETE": f"{plan.objective} {value or 0:.4g}",
        "PRUNED": f"pruned at {plan.objective} {watch.last:.4g}, validation {watch.validations}",
        "FAIL": f"failed: {notes.get(REASON)}",
    }
    return f"trial {number}: {tried}: {ends[state]} ({notes['seconds']} s)"


class _Pruned(Exception):
    """Ends a training that is worse than others were."""


class _Watch:
    """Hears the validations of a trial, and ends it when others were better by then."""

    def __init__(self, shared: SharedStudy, trial: "optuna.Trial") -> None:
        self._plan, self._trial = shared.plan, trial
        self._seen: dict[int, float] = {}
        self.validations, self.last = 0, 0.0

    def __call__(self, step: int, figures: Mapping[str, float]) -> None:
        name = self._plan.objective
        if name not in figures:
            raise EvaluationError(
                f"`objective` is {name!r}; this training validates {', '.join(figures)}"
            )
        self.last = self._seen[step] = float(figures[name])
        # Numbered, not by step: steps of trials with other batches fall elsewhere.
        self._trial.report(self.last, self.validations)
        self.validations += 1
        if self._trial.should_prune():
            raise _Pruned

    def value_at(self, step: int) -> float:
        """The objective of the weights that were kept."""
        return self._seen[step]


def _report(shared: SharedStudy, trainer: Trainer) -> SweepReport:
    plan, best = shared.plan, shared.best()
    rows = tuple(Row.of(trial, plan) for trial in shared.counted() if trial.state.is_finished())
    if best is None:
        reasons = [row.note for row in rows if row.state == "failed"]
        raise TrainingError(
            f"none of {len(rows)} trials came to an end" + (f": {reasons[0]}" if reasons else ""),
            hint="search other settings, in another `out`",
        )
    found = {name: best.params[name] for name in plan.search}
    command = trainer.command(found, shared.out / "best")
    with shared.turn():
        write_report(shared.study, plan, rows, command, shared.out)
    return SweepReport(
        plan=plan,
        rows=rows,
        best=next(row for row in rows if row.number == best.number),
        weights=shared.folder(best.number),
        command=command,
        page=shared.out / REPORT,
        elsewhere=sum(trial.state.name == "RUNNING" for trial in shared.counted()),
    )
