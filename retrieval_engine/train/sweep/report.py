"""The report of a sweep: a table of its trials, how the best value came, and which settings mattered."""

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import MissingExtra
from retrieval_engine.page import png_uri, render
from retrieval_engine.records import Json
from retrieval_engine.train.sweep.plan import SweepPlan

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure

REPORT, TABLE = "report.html", "trials.csv"
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
_LEAST_FOR_IMPORTANCE = 8
"""Complete trials below which shares of importance would be chance."""
_BLUE, _ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito's


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One finished trial.

    Attributes:
        number: of the trial, from 0.
        state: `complete`, `pruned` or `failed`.
        values: what it tried.
        value: the objective of the weights that were kept; of a pruned trial its last one, and
            None of a failed one.
        step: where the weights are from; None without any.
        validations: how often it validated.
        seconds: it took.
        note: why it failed.
    """

    number: int
    state: str
    values: Mapping[str, Json]
    value: float | None
    step: int | None
    validations: int
    seconds: float
    note: str

    @classmethod
    def of(cls, trial: "optuna.trial.FrozenTrial", plan: SweepPlan) -> "Row":
        """What the storage says of a finished trial."""
        notes, last = trial.user_attrs, trial.intermediate_values
        value = trial.value if trial.state.name == "COMPLETE" else None
        if trial.state.name == "PRUNED" and last:
            value = last[max(last)]
        return cls(
            number=trial.number,
            state=_STATES[trial.state.name],
            values={n: trial.params[n] for n in plan.search if n in trial.params},
            value=value,
            step=notes.get("step"),
            validations=notes.get("validations", len(last)),
            seconds=notes.get("seconds", 0.0),
            note=notes.get("reason", ""),
        )

    def to_json(self) -> dict[str, Json]:
        """The row as one JSON object."""
        return {**asdict(self), "values": dict(self.values)}


def check_plots() -> None:
    """See, before any work, that a report can be drawn.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "sweep")


def ranked(rows: Sequence[Row], plan: SweepPlan) -> list[Row]:
    """Complete trials, best first; then the pruned, then the failed ones, by number."""
    sign = -1 if plan.maximize else 1
    order = list(_STATES.values())
    return sorted(
        rows,
        key=lambda row: (
            order.index(row.state),
            sign * (row.value or 0) if row.state == "complete" else 0,
            row.number,
        ),
    )


def write_report(
    study: "optuna.Study", plan: SweepPlan, rows: Sequence[Row], command: str, out: Path
) -> None:
    """Write `report.html`, its plots and `trials.csv` into the sweep's directory.

    Args:
        study: with all trials.
        plan: what was tried.
        rows: the finished trials; at least one is complete.
        command: a line that trains the best again.
        out: the directory.

    Raises:
        StoreError: the disk refuses.
    """
    best_first = ranked(rows, plan)
    drawn = {"history": _history(rows, plan)}
    shares = _importances(study, rows, plan)
    if shares:
        drawn["importance"] = _importance_bars(shares)
    page = render(
        Path(__file__).with_name("report.html"),
        plan=plan,
        rows=best_first,
        names=list(plan.search),
        command=command,
        counts={state: sum(row.state == state for row in rows) for state in _STATES.values()},
        shares=shares,
        least=_LEAST_FOR_IMPORTANCE,
        drawn={name: png_uri(png) for name, png in drawn.items()},
        shown=shown,
    )
    files = {f"{name}.png": png for name, png in drawn.items()}
    files |= {REPORT: page.encode(), TABLE: _csv(best_first, plan).encode()}
    for name, content in files.items():
        replace_file(out / name, content)


def shown(value: Json) -> str:
    """A value that was tried, or a figure, for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _csv(rows: Sequence[Row], plan: SweepPlan) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    ends = ("step", "validations", "seconds", "note")
    table.writerow(["trial", "state", plan.objective, *plan.search, *ends])
    for row in rows:
        tried = [row.values.get(name, "") for name in plan.search]
        table.writerow(
            [row.number, row.state, row.value, *tried, *(getattr(row, name) for name in ends)]
        )
    return file.getvalue()


def _importances(
    study: "optuna.Study", rows: Sequence[Row], plan: SweepPlan
) -> dict[str, float] | None:
    """Share of each setting in what sets the better trials apart, by PED-ANOVA.

    Watanabe et al., IJCAI 2023. None where there are too few trials, or all are alike.
    """
    values = [row.value for row in rows if row.state == "complete"]
    if len(values) < _LEAST_FOR_IMPORTANCE or len(set(values)) == 1 or len(plan.search) < 2:
        return None
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {name: float(share) for name, share in found.items()} or None


def _history(rows: Sequence[Row], plan: SweepPlan) -> bytes:
    """The value of every trial, and the best until then."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(9, 3.8)
    axes: Any = figure.subplots()
    complete = sorted((r for r in rows if r.state == "complete"), key=lambda row: row.number)
    pruned = [row for row in rows if row.state == "pruned" and row.value is not None]
    if pruned:
        axes.scatter(
            [row.number for row in pruned],
            [row.value for row in pruned],
            marker="x",
            color=_ORANGE,
            label="pruned, last validation",
        )
    axes.scatter(
        [r.number for r in complete], [r.value for r in complete], color=_BLUE, label="complete"
    )
    choose, best = (max if plan.maximize else min), list[Any]()
    for row in complete:
        best.append(row.value if not best else choose(best[-1], row.value))
    axes.step([r.number for r in complete], best, where="post", color="#333", label="best so far")
    axes.set(xlabel="trial", ylabel=f"{plan.objective.replace('_', ' ')}, validation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _png(figure)


def _importance_bars(shares: Mapping[str, float]) -> bytes:
    figure = _figure(7, 0.9 + 0.42 * len(shares))
    axes = figure.subplots()
    names = list(shares)[::-1]
    bars = axes.barh(names, [100 * shares[name] for name in names], color=_BLUE)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xlabel="importance, percent", xlim=(0, 108))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return _png(figure)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()
