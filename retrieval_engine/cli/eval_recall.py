"""`vlre eval --recall`: Recall@K of a store, its tables, and its certificate."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_engine.cli.output import (
    emit,
    interval_range,
    note,
    note_failures,
    print_wide,
    progress_bar,
    table_console,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retrieval_engine.engine import Engine
    from retrieval_engine.evaluate import (
        DirectionReport,
        Evaluation,
        RecallIntervals,
        RecallReport,
        RecallSettings,
    )
    from retrieval_engine.evaluate.leaks import LeakReport
    from retrieval_engine.evaluate.positives import ExtendedRecall
    from retrieval_engine.metrics.bootstrap import Interval


def checkpoint_of(model: str) -> str:
    """The checkpoint that is meant; an authors' .pth file is brought into a directory beside it."""
    if not (Path(model).suffix in (".pth", ".pt") and Path(model).is_file()):
        return model
    from retrieval_engine.models.import_checkpoint import imported_beside

    return str(imported_beside(Path(model)))


def encode_missing(engine: "Engine", source: str, *, tokens: bool, on: str = "") -> str:
    """Encode what of a source the store lacks; the source's name as the store has it.

    Args:
        engine: over the store, which is made where there is none.
        source: its name.
        tokens: whether they are needed too.
        on: a Ray cluster to encode on.
    """
    from retrieval_engine.encoding import EncodeOptions, open_changed

    opened = open_changed(source, engine.store_path)
    options = EncodeOptions(features=("itc", "tokens") if tokens else ("itc",))
    with progress_bar() as progress:
        report = engine.add(opened, options=options, on=on, progress=progress)
    note_failures(report.failures)
    return opened.name


def measure_recall(
    engine: "Engine",
    settings: "RecallSettings",
    *,
    out: Path | None,
    published: str | None,
    as_json: bool,
) -> None:
    """Measure, print, and write the certificate."""
    with progress_bar() as progress:
        found = engine.evaluate(settings=settings, progress=progress)
    show_evaluation(found, published, as_json=as_json)
    certify(found, out)


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
    if found.extended:
        _print_extended(found.extended)
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
        + (interval_range(intervals.mean_recall, 1) if intervals else "")
    )


def _print_extended(extended: "ExtendedRecall") -> None:
    from rich.table import Table

    table = Table(title=f"by {', '.join(extended.digests)}", title_justify="left")
    table.add_column("")
    sides = [("image to text", extended.image_to_text), ("text to image", extended.text_to_image)]
    shown = [(name, side) for name, side in sides if side]
    for k in shown[0][1].recall:
        table.add_column(f"R@{k}", justify="right")
    for name in ("R-Precision", "mAP@R", "queries", "positives"):
        table.add_column(name, justify="right")
    for name, side in shown:
        figures = [*side.recall.values(), side.r_precision, side.map_at_r]
        counts = [f"{side.n_queries:,}", f"{side.n_positives:,}"]
        table.add_row(name, *(f"{value:.1f}" for value in figures), *counts)
    table_console().print(table)
    if extended.n_unknown:
        note(f"{extended.n_unknown:,} pairs of the files are not in the gallery and were left out")


def _recalls(side: "DirectionReport", intervals: "Mapping[str, Interval]") -> list[str]:
    return [
        f"{value:.1f}" + interval_range(intervals.get(f"R@{k}"), 1)
        for k, value in side.recall.items()
    ]


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
    print_wide(table)
    size = (found.report.n_images, found.report.n_captions)
    if size != gallery_size(dataset):
        note(
            "not comparable: published figures are of {:,} images and {:,} captions, "
            "this gallery holds {:,} and {:,}".format(*gallery_size(dataset), *size)
        )
