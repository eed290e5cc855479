"""`vlre eval`: the figures that may be published."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.options import device_option, json_option, split_option, store_option

if TYPE_CHECKING:
    from retrieval_engine.evaluate import RecallReport

_HELP = """Measure: Recall@K of a store, or the quality of captions.

\b
  vlre eval --recall --split test
  vlre eval --captions predictions.jsonl --references references.json

Recall is exact: every image against every caption, both directions, no index. Any of an image's
captions counts for image to text; each caption asks for its own image. Of equal scores the lower
index is first; NaN is an error.
"""


@click.command(help=_HELP)
@click.option("--recall", is_flag=True, help="Recall@K of the store, both directions.")
@store_option
@split_option
@click.option(
    "-k", "ks", type=click.IntRange(1), multiple=True, default=(1, 5, 10), help="Cutoffs."
)
@click.option(
    "--ties",
    type=click.Choice(["lower-index", "pessimistic", "optimistic"]),
    default="lower-index",
    show_default=True,
    help="Of exactly equal scores: the lower index first, all before the right one, or none.",
)
@device_option
@json_option
def command(
    recall: bool,
    store: Path,
    split: str | None,
    ks: tuple[int, ...],
    ties: str,
    device: str,
    as_json: bool,
) -> None:
    """Parse, measure, print."""
    if not recall:
        raise click.UsageError("say what to measure: --recall, or --captions with --references")
    _recall(store, split, ks, ties, device, as_json)


def _recall(
    path: Path, split: str | None, ks: tuple[int, ...], ties: str, device: str, as_json: bool
) -> None:
    from retrieval_engine.cli.output import emit
    from retrieval_engine.evaluate import Ties, evaluate_recall
    from retrieval_engine.store import open_store

    report = evaluate_recall(
        open_store(path), split=split, ks=sorted(set(ks)), ties=Ties(ties), device=device
    )
    if as_json:
        emit(report.to_json())
    else:
        _print_recall(report)


def _print_recall(report: "RecallReport") -> None:
    from rich.table import Table

    from retrieval_engine.cli.output import note, table_console
    from retrieval_engine.evaluate import recall_intervals

    spread = recall_intervals(report)
    table = Table(title=f"{report.n_images:,} images, {report.n_captions:,} captions")
    table.add_column("direction")
    for k in report.image_to_text.recall:
        table.add_column(f"R@{k}", justify="right")
    table.add_column("median rank", justify="right")
    for name, side, bounds in (
        ("image to text", report.image_to_text, spread and spread.image_to_text),
        ("text to image", report.text_to_image, spread and spread.text_to_image),
    ):
        cells = [
            f"{value:.1f}"
            + (" [dim]({:.1f}-{:.1f})[/]".format(*bounds[f"R@{k}"]) if bounds else "")
            for k, value in side.recall.items()
        ]
        table.add_row(name, *cells, f"{side.median_rank:g}")
    table_console().print(table)
    table_console().print(f"mean recall {report.mean_recall:.2f}, exact search")
    if report.n_without_captions:
        note(f"{report.n_without_captions:,} images have no caption: they distract and ask nothing")
    if report.ranks.n_tied:
        note(f"{report.ranks.n_tied:,} queries tie with a wrong answer: --ties shows the bounds")
