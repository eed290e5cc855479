"""Prints what a sweep came to."""

from typing import TYPE_CHECKING

from retrieval_engine.cli.output import note, print_wide, tell

if TYPE_CHECKING:
    from retrieval_engine.train.sweep import SweepReport

_SHOWN = 10


def show_sweep(report: "SweepReport") -> None:
    """The best trials as a table, and the command that trains the best again, on stdout."""
    from rich.table import Table

    from retrieval_engine.train.sweep.report import ranked, shown

    plan = report.plan
    table = Table(title=f"{plan.training}: {plan.objective} on validation data")
    for name in ("trial", plan.objective, *plan.search, "step", "seconds"):
        table.add_column(name, justify="right")
    complete = [row for row in ranked(report.rows, plan) if row.state == "complete"]
    for row in complete[:_SHOWN]:
        tried = [shown(row.values[name]) for name in plan.search]
        ends = [str(row.step), f"{row.seconds:.1f}"]
        table.add_row(str(row.number), shown(row.value), *tried, *ends)
    print_wide(table)
    counts = {s: sum(row.state == s for row in report.rows) for s in ("pruned", "failed")}
    tell(f"the best again: {report.command}")
    note(f"{len(complete)} trials complete, {counts['pruned']} pruned, {counts['failed']} failed")
    if report.elsewhere:
        note(f"{report.elsewhere} more at work in other processes: the last of them reports on all")
    note(f"weights: {report.weights}")
    note(f"report: {report.page}")
