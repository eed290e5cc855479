"""How a comparison looks: to people, and in four forms for programs and papers."""

from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.output import emit, note, table_console

if TYPE_CHECKING:
    from retrieval_engine.evaluate.compare import Comparison


def show_comparison(comparison: "Comparison", form: str) -> None:
    """Print the figures.

    Args:
        comparison: what `compare` gave.
        form: `json` (a line a run), `csv`, `markdown`, `latex`, or empty for people.
    """
    if form == "json":
        for row in comparison.rows:
            emit(row.to_json())
    elif form == "csv":
        click.echo(comparison.csv(), nl=False)
    elif form == "markdown":
        click.echo(comparison.markdown())
    elif form == "latex":
        click.echo(comparison.latex())
    else:
        _print(comparison)
    for remark in comparison.remarks:
        note(remark)


def _print(comparison: "Comparison") -> None:
    from rich.table import Table

    row = comparison.rows[0]
    table = Table(title=f"{row.images:,} images, {row.captions:,} captions", title_justify="left")
    table.add_column("run")
    for heading in ("I→T R@1/5/10", "T→I R@1/5/10", "mean (95 %)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison.rows:
        name, *recalls, mean = row.cells()
        spread = " ({:.1f}-{:.1f})".format(*row.mean_interval) if row.mean_interval else ""
        sides = (" ".join(part) for part in (recalls[:3], recalls[3:]))
        table.add_row(name, *sides, mean + spread)
    table_console().print(table)
    for row in comparison.rows:
        if row.gain:
            gain, (low, high) = row.gain
            click.echo(
                f"{row.name} against {comparison.rows[0].name}: mean {gain:+.2f} "
                f"({low:+.2f} to {high:+.2f})"
            )
