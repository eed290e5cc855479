"""`vlre eval --captions`: how good captions are, by the metrics of the COCO tools."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_engine.cli.output import emit, interval_range, note, print_wide, table_console

if TYPE_CHECKING:
    from rich.table import Table

    from retrieval_engine.evaluate import CaptionReport


def score_captions(
    captions: Path,
    references: str,
    *,
    split: str | None,
    allow_missing: bool,
    meteor: bool | None,
    per_image: Path | None,
    published: str | None,
    as_json: bool,
) -> None:
    """Score, write each image's scores where that is asked for, and print."""
    from retrieval_engine.evaluate import evaluate_captions
    from retrieval_engine.evaluate.caption_scores import write_rows
    from retrieval_engine.metrics.meteor import meteor_is_missing

    reason = meteor_is_missing() if meteor is None else ""
    if reason:
        note(f"METEOR is left out: {reason}")
    report = evaluate_captions(
        captions,
        references,
        split=split,
        allow_missing=allow_missing,
        with_meteor=meteor is not False and not reason,
    )
    if per_image:
        write_rows(per_image, report)
    show_captions(report, published, as_json=as_json)


def show_captions(report: "CaptionReport", published: str | None, *, as_json: bool) -> None:
    """Print caption metrics, times 100 as in papers, and diversity beside the references'.

    Args:
        report: the figures.
        published: any data set puts COCO's published figures beside ours.
        as_json: one JSON line instead of tables; there 1.0 stays 1.0.
    """
    from dataclasses import asdict

    from rich.table import Table

    from retrieval_engine.evaluate.published import published_captions

    rows = published_captions() if published else []
    for line in report.notes:
        note(line)
    if as_json:
        emit(report.to_json() | ({"published": [asdict(row) for row in rows]} if rows else {}))
        return
    pairs, scores, console = report.pairs, report.scores, table_console()
    counts = f"{len(pairs.images):,} captions, {sum(map(len, pairs.references)):,} references"
    table = Table("metric, times 100", title=counts, title_justify="left")
    table.add_column("score", justify="right")
    for name, value in scores.metrics.items():
        table.add_row(name, f"{100 * value:.1f}{interval_range(scores.intervals.get(name), 100)}")
    console.print(table)
    varied = Table("", title="diversity", title_justify="left")
    varied.add_column("captions", justify="right")
    varied.add_column("references", justify="right")
    theirs = report.references.to_json()
    for name, own in report.captions.to_json().items():
        varied.add_row(name.replace("_", " "), f"{own:.4g}", f"{theirs[name]:.4g}")
    console.print(varied)
    if rows:
        print_wide(_published_captions(report))
    for reason, images in (
        ("missing", pairs.missing),
        ("empty", pairs.empty),
        ("failed", pairs.failed),
        ("without references", pairs.unreferenced),
    ):
        if images:
            note(f"not scored, {reason}: {len(images):,} ({', '.join(images[:3])})")


def _published_captions(report: "CaptionReport") -> "Table":
    from rich.table import Table

    from retrieval_engine.evaluate.published import published_captions

    names = ("BLEU-4", "METEOR", "CIDEr", "SPICE")
    table = Table(title="published on COCO, Karpathy test", title_justify="left")
    for name in ("model", *names, "source"):
        table.add_column(name, overflow="fold")
    ours = {name: 100 * value for name, value in report.scores.metrics.items()}
    table.add_row("ours", *(_figure(ours.get(name)) for name in names), "this run", style="bold")
    for row in published_captions():
        source = f"{row.source} \\[{row.unverified}]" if row.unverified else row.source
        table.add_row(row.model, *(_figure(row.metrics.get(name)) for name in names), source)
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
