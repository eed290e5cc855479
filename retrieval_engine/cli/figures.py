"""How figures look to people: tables of recall and of caption metrics."""

from typing import TYPE_CHECKING

from retrieval_engine.cli.output import note, table_console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from retrieval_engine.evaluate import CaptionReport, DirectionReport, RecallReport
    from retrieval_engine.evaluate.bootstrap import Interval
    from retrieval_engine.evaluate.intervals import RecallIntervals


def print_recall(
    report: "RecallReport", intervals: "RecallIntervals | None", *, title: str = "exact search"
) -> None:
    """Both directions as a table on stdout, remarks on stderr."""
    from rich.table import Table

    table = Table(
        title=f"{report.n_images:,} images, {report.n_captions:,} captions, {title}",
        title_justify="left",
    )
    table.add_column("")
    for k in report.image_to_text.recall:
        table.add_column(f"R@{k}", justify="right")
    table.add_column("median rank", justify="right")
    sides = intervals.image_to_text if intervals else {}
    _direction(table, "image to text", report.image_to_text, sides)
    sides = intervals.text_to_image if intervals else {}
    _direction(table, "text to image", report.text_to_image, sides)
    console = table_console()
    console.print(table)
    spread = _range(intervals.mean_recall, 1) if intervals else ""
    console.print(f"mean recall {report.mean_recall:.2f}{spread}")
    if report.n_without_captions:
        note(f"{report.n_without_captions:,} images without captions distract and ask nothing")
    if report.ranks.n_tied:
        note(f"{report.ranks.n_tied:,} queries tie with a wrong answer: --ties shows the bounds")


def _direction(
    table: "Table", name: str, side: "DirectionReport", intervals: "Mapping[str, Interval]"
) -> None:
    cells = [
        f"{value:.1f}" + _range(intervals.get(f"R@{k}"), 1) for k, value in side.recall.items()
    ]
    table.add_row(name, *cells, f"{side.median_rank:g}")


def _range(interval: "Interval | None", scale: float) -> str:
    if interval is None:
        return ""
    low, high = (scale * bound for bound in interval)
    return f" [dim]({low:.1f}-{high:.1f})[/]"


def print_captions(report: "CaptionReport") -> None:
    """The metrics as papers write them (times 100) and the diversity beside the references'."""
    from rich.table import Table

    pairs, scores = report.pairs, report.scores
    console = table_console()
    table = Table(
        title=f"{len(pairs.images):,} captions, {sum(map(len, pairs.references)):,} references",
        title_justify="left",
    )
    table.add_column("metric, times 100")
    table.add_column("score", justify="right")
    for name, value in scores.metrics.items():
        table.add_row(name, f"{100 * value:.1f}{_range(scores.intervals.get(name), 100)}")
    console.print(table)
    varied = Table("", title="diversity", title_justify="left")
    varied.add_column("captions", justify="right")
    varied.add_column("references", justify="right")
    theirs = report.references.to_json()
    for name, own in report.captions.to_json().items():
        varied.add_row(name.replace("_", " "), f"{own:.4g}", f"{theirs[name]:.4g}")
    console.print(varied)
    left_out = {
        "missing": pairs.missing,
        "empty": pairs.empty,
        "failed": pairs.failed,
        "without references": pairs.unreferenced,
    }
    for reason, images in left_out.items():
        if images:
            note(f"not scored, {reason}: {len(images):,} ({', '.join(images[:3])} …)")
