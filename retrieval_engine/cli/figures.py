"""How figures look to people: tables of recall, of caption metrics, and of what others published."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_engine.cli.output import emit, note, table_console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from retrieval_engine.evaluate import (
        CaptionReport,
        DirectionReport,
        Evaluation,
        RecallIntervals,
        RecallReport,
    )
    from retrieval_engine.evaluate.leaks import LeakReport
    from retrieval_engine.metrics.bootstrap import Interval

_PIPED_WIDTH = 180


def show_evaluation(found: "Evaluation", published: str | None, *, as_json: bool) -> None:
    """Print an evaluation: figures on stdout, remarks on stderr.

    Args:
        found: the evaluation.
        published: data set whose published figures stand beside ours; `auto` tells it from the
            sources, None leaves them out.
        as_json: one JSON line instead of tables.
    """
    from dataclasses import asdict

    from retrieval_engine.evaluate.published import dataset_of, published_recall

    dataset = dataset_of(found.gallery.sources) if published == "auto" else published
    rows = published_recall(dataset) if dataset else []
    if as_json:
        emit(found.to_json() | ({"published": [asdict(row) for row in rows]} if rows else {}))
        return
    for protocol, report in found.results:
        print_recall(report, found.intervals(report), title=protocol.title)
    if dataset:
        _print_published(found, dataset)
    _remark(found.report, found.leaks, found.gallery.left_out)


def certify(found: "Evaluation", out: Path | None) -> None:
    """Write the certificate and say where; without `out`, beside the features if that is allowed.

    Raises:
        EvaluationError: `out` cannot be written.
    """
    from retrieval_engine.errors import EvaluationError
    from retrieval_engine.evaluate.certificate import write_certificate

    path = out or found.gallery.store.path / "metrics.json"
    try:
        write_certificate(path, found.certificate())
    except EvaluationError as error:
        if out:
            raise
        note(f"no certificate: {error.message}; name a place with --out")
    else:
        note(f"certificate: {path}")


def print_recall(
    report: "RecallReport", intervals: "RecallIntervals | None", *, title: str
) -> None:
    """Both directions as a table on stdout."""
    from rich.table import Table

    counts = f"{report.n_images:,} images, {report.n_captions:,} captions"
    table = Table(title=f"{counts}: {title}", title_justify="left")
    table.add_column("")
    for k in report.image_to_text.recall:
        table.add_column(f"R@{k}", justify="right")
    table.add_column("median rank", justify="right")
    for name, side, spread in (
        ("image to text", report.image_to_text, intervals.image_to_text if intervals else {}),
        ("text to image", report.text_to_image, intervals.text_to_image if intervals else {}),
    ):
        table.add_row(name, *_recalls(side, spread), f"{side.median_rank:g}")
    console = table_console()
    console.print(table)
    console.print(
        f"mean recall {report.mean_recall:.2f}"
        + (_range(intervals.mean_recall, 1) if intervals else "")
    )


def _recalls(side: "DirectionReport", intervals: "Mapping[str, Interval]") -> list[str]:
    return [f"{value:.1f}" + _range(intervals.get(f"R@{k}"), 1) for k, value in side.recall.items()]


def _range(interval: "Interval | None", scale: float) -> str:
    if interval is None:
        return ""
    low, high = (scale * bound for bound in interval)
    return f" [dim]({low:.1f}-{high:.1f})[/]"


def _remark(report: "RecallReport", leaks: "LeakReport", left_out: int) -> None:
    if left_out:
        note(f"{left_out:,} items have no features and are not in the gallery: encode them first")
    if report.n_without_captions:
        note(f"{report.n_without_captions:,} images without captions distract and ask nothing")
    if report.ranks.n_tied:
        note(f"{report.ranks.n_tied:,} queries tie with a wrong answer: --ties shows the bounds")
    if leaks.found:
        note(
            f"LEAK: of {report.n_images:,} images {leaks.shared_ids:,} were trained on by id, "
            f"{leaks.shared_contents:,} by content, {leaks.near_duplicates:,} nearly "
            f"({', '.join(leaks.examples[:3])})"
        )
    elif leaks.trained_on:
        note(f"no image was trained on, going by {'; '.join(leaks.trained_on)}")
    for line in leaks.unknown:
        note(f"leaks: {line}")


def _print_published(found: "Evaluation", dataset: str) -> None:
    from rich.table import Table

    from retrieval_engine.evaluate.published import gallery_size, published_recall

    table = Table(title=f"published on {dataset}: R@1/5/10", title_justify="left")
    for name in ("model", "setting", "re-ranked", "image to text", "text to image", "source"):
        table.add_column(name, overflow="fold", no_wrap=" to " in name)
    spec = found.gallery.store.spec
    for protocol, report in found.results:
        sides = (report.image_to_text.recall, report.text_to_image.recall)
        ours = ["/".join(f"{side[k]:.1f}" for k in side) for side in sides]
        rerank = f"ITM, k={protocol.k}" if protocol.k else "none"
        table.add_row(spec.checkpoint, "ours", rerank, *ours, "this run", style="bold")
    for row in published_recall(dataset):
        theirs = [
            "/".join("-" if v is None else f"{v:.1f}" for v in side.values())
            for side in (row.image_to_text, row.text_to_image)
        ]
        source = f"{row.source} [{row.unverified}]" if row.unverified else row.source
        table.add_row(row.model, row.setting, row.rerank, *theirs, source.replace("[", "\\["))
    _wide(table)
    size = (found.report.n_images, found.report.n_captions)
    if size != gallery_size(dataset):
        note(
            "not comparable: published figures are of {:,} images and {:,} captions, "
            "this gallery holds {:,} and {:,}".format(*gallery_size(dataset), *size)
        )


def _wide(table: "Table") -> None:
    """Print a table of many columns; in a file or a pipe it may be as wide as it needs."""
    console = table_console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    console.print(table)


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
    if as_json:
        emit(report.to_json() | ({"published": [asdict(row) for row in rows]} if rows else {}))
        return
    pairs, scores, console = report.pairs, report.scores, table_console()
    counts = f"{len(pairs.images):,} captions, {sum(map(len, pairs.references)):,} references"
    table = Table("metric, times 100", title=counts, title_justify="left")
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
    if rows:
        _wide(_published_captions(report))
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
