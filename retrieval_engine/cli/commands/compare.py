"""`vlre compare`: several runs side by side."""

from pathlib import Path
from typing import Any

import click

from retrieval_engine.cli.options import UserPath, example, json_option, split_option, store_option

_HELP = """Compare heads, encoders and saved figures: a table, pictures and one HTML report.

A RUN is the directory of a head, another store, a file from `vlre eval --json`, or the word itc:
what the encoder gives without a head. NAME=RUN names it. All are measured on the same images of the
store; those that some head was trained on are left out for every run.

With --references, runs are files of captions (`vlre caption --out`), before and after; --out gets
a page, and captions.csv with each picture's captions side by side:

\b
  vlre compare old.jsonl new.jsonl --references references.json --out report
"""


@click.command(help=_HELP, epilog=example("vlre compare itc heads/linear heads/mlp --out report"))
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@store_option
@split_option
@click.option("--out", type=UserPath(), help="Write report.html and pictures here.")
@click.option("--title", default="Comparison", show_default=True, help="Of the report.")
@click.option(
    "--references",
    metavar="SOURCE",
    help="Compare files of captions with these references: a file, a source, or a store.",
)
@click.option("--images", type=UserPath(file_okay=False), help="Of captions: the pictures.")
@click.option("--allow-missing", is_flag=True, help="Of captions: leave out what some run lacks.")
@json_option
@click.option("--csv", "form", flag_value="csv", help="The table as CSV.")
@click.option("--markdown", "form", flag_value="markdown", help="The table as Markdown.")
@click.option("--latex", "form", flag_value="latex", help="The table as LaTeX.")
def command(
    runs: tuple[str, ...],
    store: Path,
    split: str | None,
    out: Path | None,
    title: str,
    references: str | None,
    as_json: bool,
    form: str | None,
    **of_captions: Any,
) -> None:
    """Parse, compare, print."""
    from retrieval_engine.cli.comparison_table import compare_caption_runs, show_comparison
    from retrieval_engine.cli.output import note

    form = "json" if as_json else form or ""
    if references is not None:
        compare_caption_runs(
            runs, references, split=split, form=form, out=out, title=title, **of_captions
        )
        return
    from retrieval_engine.evaluate.compare import compare, open_runs, write_report

    comparison = compare(open_runs(runs, store), split=split)
    show_comparison(comparison, form)
    if out is not None:
        note(f"report: {write_report(comparison, out, title=title).page}")
