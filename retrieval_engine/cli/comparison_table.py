"""How comparisons look, of recall and of captions: to people, and for programs and papers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.output import emit, note, table_console
from retrieval_engine.cli.wording import as_options
from retrieval_engine.errors import UsageError

if TYPE_CHECKING:
    from retrieval_engine.caption.collapse import CollapseReport
    from retrieval_engine.evaluate.compare import Comparison, Row
    from retrieval_engine.evaluate.compare.caption_comparison import CaptionComparison, CaptionRow


def show_comparison(comparison: "Comparison", form: str) -> None:
    """Print the figures of a comparison.

    Args:
        comparison: what `compare` gave.
        form: `json` (a line a run), `csv`, `markdown`, `latex`, or empty for people.
    """
    if form == "latex":
        click.echo(comparison.latex())
    elif not _told(comparison, form):
        _print(comparison)
    for remark in comparison.remarks:
        note(remark)


def _told(comparison: "Comparison | CaptionComparison", form: str) -> bool:
    """Print it as JSON, CSV or Markdown, where it is that form; whether it was."""
    if form == "json":
        for row in comparison.rows:
            emit(row.to_json())
    elif form == "csv":
        click.echo(comparison.csv(), nl=False)
    elif form == "markdown":
        click.echo(comparison.markdown())
    return form in ("json", "csv", "markdown")


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
    references: str,
    *,
    split: str | None,
    form: str,
    out: Path | None,
    images: Path | None,
    allow_missing: bool,
    title: str,
) -> None:
    """Compare files of captions and print the figures.

    Args:
        runs: files of captions, `NAME=FILE` names one.
        references: file, source or store with references.
        split: of them, only the images of this split.
        form: `json` (a line a run), `csv`, `markdown`, or empty for people.
        out: directory for the page, or None.
        images: folder of the images, where the files do not say where they are.
        allow_missing: leave out images that some run has no caption for.
        title: of the page.

    Raises:
        UsageError: a form that captions do not have.
    """
    from retrieval_engine.evaluate.compare.caption_comparison import compare_captions
    from retrieval_engine.evaluate.compare.pages import write_caption_page

    if form == "latex":
        raise UsageError("--latex is of heads and stores; captions have --json, --csv, --markdown")
    comparison = compare_captions(runs, references, split=split, allow_missing=allow_missing)
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


def show_collapse(report: "CollapseReport") -> None:
    """Print what a captioner says in each way, what it knows, and the verdict."""
    from rich.table import Table

    table = Table(title=f"{len(report.images):,} images: {report.model}", title_justify="left")
    for number, heading in enumerate(
        ("words by", "CIDEr", "different %", "commonest %", "repeated %")
    ):
        table.add_column(heading, justify="right" if number else "left")
    for way in report.ways:
        varied = way.varied
        shares = (varied.distinct_captions, varied.commonest_share, varied.repetition_rate)
        figures = [f"{100 * value:.1f}" for value in (way.cider, *shares)]
        table.add_row(way.name, *figures)
    table_console().print(table)
    click.echo(
        f"next token: loss {report.loss:.2f}, entropy {report.entropy:.2f}, another picture adds "
        f"{report.gain:.2f} nats"
    )
    for band in report.bands:
        click.echo(
            f"  {band.name:17} {band.share:4.0%} of tokens: loss {band.loss:.2f}, another picture "
            f"adds {band.gain:.2f}"
        )
    click.echo(as_options(report.verdict, click.get_current_context()))
