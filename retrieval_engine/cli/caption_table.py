"""How a comparison of caption runs looks: to people, and in forms for programs and papers."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.output import emit, note, table_console
from retrieval_engine.errors import UsageError

if TYPE_CHECKING:
    from retrieval_engine.evaluate.compare.caption_comparison import CaptionComparison


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
        images: folder of the pictures, where the files do not say where they are.
        allow_missing: leave out pictures that some run has no caption for.
        title: of the page.

    Raises:
        UsageError: a form that captions do not have.
    """
    from retrieval_engine.evaluate.compare.caption_comparison import compare_captions
    from retrieval_engine.evaluate.compare.caption_page import write_caption_page

    if form not in ("", "json", "markdown"):
        raise UsageError(f"--{form} is of heads and stores; captions have --json and --markdown")
    comparison = compare_captions(runs, references, allow_missing=allow_missing)
    if form == "json":
        for row in comparison.rows:
            emit(row.to_json())
    elif form == "markdown":
        click.echo(comparison.markdown())
    else:
        _print(comparison)
    if comparison.left_out:
        note(f"{comparison.left_out:,} pictures lack a caption of some run and are left out")
    if out is not None:
        note(f"page: {write_caption_page(comparison, out, images=images, title=title)}")


def _print(comparison: "CaptionComparison") -> None:
    from rich.table import Table

    table = Table(title=f"{len(comparison.images):,} pictures", title_justify="left")
    for number, heading in enumerate(comparison.HEADINGS):
        table.add_column(heading, justify="right" if number else "left")
    for row in comparison.rows:
        table.add_row(*row.cells())
    table_console().print(table)
    for row in comparison.rows:
        if row.gain:
            gain, (low, high) = row.gain
            click.echo(
                f"{row.name} against {comparison.rows[0].name}: CIDEr {100 * gain:+.1f} "
                f"({100 * low:+.1f} to {100 * high:+.1f})"
            )
