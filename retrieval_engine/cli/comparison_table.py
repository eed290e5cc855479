"""How comparisons look, of recall and of captions: to people, and for programs and papers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.output import emit, note, table_console
from retrieval_engine.errors import UsageError

if TYPE_CHECKING:
    from retrieval_engine.evaluate.compare import Comparison, Row
    from retrieval_engine.evaluate.compare.caption_comparison import CaptionComparison, CaptionRow


def show_comparison(comparison: "Comparison", form: str) -> None:
    """Print the figures of a comparison.

    Args:
        comparison: what `compare` gave.
        form: `json` (a line a run), `csv`, `markdown`, `latex`, or empty for people.
    """
    if form == "csv":
        click.echo(comparison.csv(), nl=False)
    elif form == "latex":
        click.echo(comparison.latex())
    elif not _told(comparison, form):
        _print(comparison)
    for remark in comparison.remarks:
        note(remark)


def _told(comparison: "Comparison | CaptionComparison", form: str) -> bool:
    """Print it as JSON or Markdown, where it is that form; whether it was."""
    if form == "json":
        for row in comparison.rows:
            emit(row.to_json())
    elif form == "markdown":
        click.echo(comparison.markdown())
    return form in ("json", "markdown")


def _print_gains(
    rows: "Sequence[Row | CaptionRow]", figure: str, scale: float, digits: int
) -> None:
    """How far each run is above the first, and the bounds of that."""
    for row in rows:
        if row.gain:
            gain, low, high = (f"{scale * x:+.{digits}f}" for x in (row.gain[0], *row.gain[1]))
            click.echo(f"{row.name} against {rows[0].name}: {figure} {gain} ({low} to {high})")


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
    _print_gains(comparison.rows, "mean", 1, 2)


def compare_caption_runs(
    runs: tuple[str, ...],
    references: Path,
    *,
    form: str,
    out: Path | None,
    images: Path | None,
    allow_missing: bool,
    title: str,
) -> None:
    """Compare files of captions and print the figures.

    Args:
        runs: files of captions, `NAME=FILE` names one.
        references: file of references.
        form: `json` (a line a run), `markdown`, or empty for people.
        out: directory for the page, or None.
        images: folder of the images, where the files do not say where they are.
        allow_missing: leave out images that some run has no caption for.
        title: of the page.

    Raises:
        UsageError: a form that captions do not have.
    """
    from retrieval_engine.evaluate.compare.caption_comparison import compare_captions
    from retrieval_engine.evaluate.compare.pages import write_caption_page

    if form not in ("", "json", "markdown"):
        raise UsageError(f"--{form} is of heads and stores; captions have --json and --markdown")
    comparison = compare_captions(runs, references, allow_missing=allow_missing)
    if not _told(comparison, form):
        _print_captions(comparison)
    if comparison.left_out:
        note(f"{comparison.left_out:,} images lack a caption of some run and are left out")
    if out is not None:
        note(f"page: {write_caption_page(comparison, out, images=images, title=title)}")


def _print_captions(comparison: "CaptionComparison") -> None:
    from rich.table import Table

    table = Table(title=f"{len(comparison.images):,} images", title_justify="left")
    for number, heading in enumerate(comparison.HEADINGS):
        table.add_column(heading, justify="right" if number else "left")
    for row in comparison.rows:
        table.add_row(*row.cells())
    table_console().print(table)
    _print_gains(comparison.rows, "CIDEr", 100, 1)
