"""`vlre duplicates`: pictures of a store that are one picture, and which of them to keep."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.options import (
    UserPath,
    example,
    json_option,
    split_option,
    store_option,
)

if TYPE_CHECKING:
    from retrieval_engine.duplicates import DuplicateReport

_HELP = """Find near-duplicates: the same picture resized, encoded again, cropped, brightened.

Vectors say which pictures may be one; their pixels, laid over each other, prove it. The best of
each group is the largest of the sharp ones. Nothing is deleted: piped, a line is printed for each
copy that may go, group, best and copy separated by tabs, for other programs to act on.
"""


@click.command(help=_HELP, epilog=example("vlre duplicates"))
@store_option
@split_option
@click.option(
    "--index", type=UserPath(), help="Find near pictures with this index: for millions of them."
)
@click.option(
    "--neighbours",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="At most so many near pictures of each are compared with it.",
)
@click.option(
    "--least", default=0.5, show_default=True, help="Cosine of vectors from which they are."
)
@json_option
@click.option("--html", type=UserPath(), help="Write a sheet of the groups to look at.")
def command(
    store: Path,
    split: str | None,
    index: Path | None,
    neighbours: int,
    least: float,
    as_json: bool,
    html: Path | None,
) -> None:
    """Parse, find, print."""
    from retrieval_engine import Engine
    from retrieval_engine.cli.output import note, progress_bar
    from retrieval_engine.duplicates import DuplicateSettings
    from retrieval_engine.durable import replace_file

    settings = DuplicateSettings(split=split, neighbours=neighbours, least=least)
    with progress_bar() as progress:
        report = Engine(store=store, index=index).duplicates(settings, progress=progress)
    _print(report, as_json=as_json)
    for uri, reason in list(report.unreadable.items())[:5]:
        note(f"not compared: {uri}: {reason}")
    if report.unreadable:
        note(f"{len(report.unreadable):,} pictures cannot be read and were not compared")
    pairs = "pair" if report.n_candidates == 1 else "pairs"
    note(
        f"{report.groups_told}; {report.copies_told} ({report.n_candidates:,} near {pairs} compared)"
    )
    if html:
        from retrieval_engine.duplicates.duplicate_page import render_duplicates

        replace_file(html, render_duplicates(report).encode())
        note(f"sheet: {html}")


def _print(report: "DuplicateReport", *, as_json: bool) -> None:
    from retrieval_engine.cli.hit_table import cell
    from retrieval_engine.cli.output import emit, on_terminal

    if as_json:
        for group in report.groups:
            emit(group.to_json())
    elif on_terminal():
        _print_table(report)
    else:
        for number, group in enumerate(report.groups, start=1):
            for copy in group.members[1:]:
                line = f"{number}\t{cell(group.best.uri)}\t{cell(copy.uri)}"
                click.echo(line, color=True)


def _print_table(report: "DuplicateReport") -> None:
    from rich.table import Table
    from rich.text import Text

    from retrieval_engine.cli.output import print_wide, shown

    table = Table(box=None, pad_edge=False)
    for name in ("group", "", "width", "height", "bytes", "sharpness"):
        table.add_column(name, justify="right")
    table.add_column("id", overflow="fold")
    for number, group in enumerate(report.groups, start=1):
        for place, copy in enumerate(group.members):
            table.add_row(
                str(number) if place == 0 else "",
                "best" if place == 0 else "",
                str(copy.width),
                str(copy.height),
                f"{copy.size_bytes:,}",
                f"{copy.sharpness:.3f}",
                Text(shown(copy.item_id)),
            )
    print_wide(table)
