"""Figures of several runs on one gallery that none of them was trained on."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retrieval_engine.encoding.projected import ProjectedStore, leak_free
from retrieval_engine.errors import EvaluationError
from retrieval_engine.evaluate.compare.runs import ComparedRun
from retrieval_engine.evaluate.store_recall import gallery_recall
from retrieval_engine.metrics.bootstrap import Bootstrap, Interval
from retrieval_engine.metrics.intervals import difference_interval, recall_intervals
from retrieval_engine.metrics.recall import RecallReport
from retrieval_engine.records import Json
from retrieval_engine.store import Gallery

KS = ("R@1", "R@5", "R@10")
SIDES = ("image_to_text", "text_to_image")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Recall of one run in a comparison, in percent.

    Attributes:
        name: of the run.
        kind: of the run.
        note: about it.
        recall: by direction and `R@k`.
        interval: 95 % bounds in the same form, or None where they are not known.
        mean: of the six.
        mean_interval: its bounds.
        gain: mean recall above that of the first run, with the bounds of this paired difference.
        images: in the gallery.
        captions: in the gallery.
    """

    name: str
    kind: str
    note: str
    recall: Mapping[str, Mapping[str, float]]
    interval: Mapping[str, Mapping[str, Interval]] | None
    mean: float
    mean_interval: Interval | None
    gain: tuple[float, Interval] | None
    images: int
    captions: int

    def to_json(self) -> dict[str, Json]:
        """The row as one JSON object."""
        value: dict[str, Json] = {"run": self.name, "kind": self.kind, "note": self.note}
        for side in SIDES:
            value[side] = dict(self.recall[side])
        value |= {"mean_recall": self.mean, "n_images": self.images, "n_captions": self.captions}
        if self.interval and self.mean_interval:
            bounds: dict[str, Json] = {
                side: {k: list(b) for k, b in self.interval[side].items()} for side in SIDES
            }
            value["interval"] = bounds | {"mean_recall": list(self.mean_interval)}
        if self.gain:
            value["gain"] = {"mean_recall": self.gain[0], "interval": list(self.gain[1])}
        return value

    def cells(self) -> list[str]:
        """Name, the six recalls and their mean, for people."""
        recalls = [f"{self.recall[side][k]:.1f}" for side in SIDES for k in KS]
        return [self.name, *recalls, f"{self.mean:.1f}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs measured on one gallery, a row for each.

    Attributes:
        rows: figures, in the order of the runs.
        runs: what was compared.
        galleries: of each run that has vectors, the same images in the same order.
        left_out: images of the split that some head has seen.
        remarks: lines for people.
    """

    rows: Sequence[Row]
    runs: Sequence[ComparedRun]
    galleries: Mapping[str, Gallery]
    left_out: int
    remarks: Sequence[str] = field(default=())

    HEADINGS = ("run", *(f"{side} {k}" for side in ("I→T", "T→I") for k in KS), "mean")

    def csv(self) -> str:
        """One line a run, bounds in columns of their own."""
        file = io.StringIO()
        names = [f"{side} {k}" for side in SIDES for k in KS]
        bounds = [f"{name} {end}" for name in names for end in ("low", "high")]
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["run", "kind", *names, "mean_recall", "n_images", "n_captions", *bounds])
        for row in self.rows:
            recalls = [f"{row.recall[side][k]:.4f}" for side in SIDES for k in KS]
            ends: list[str] = []
            if row.interval:
                ends = [f"{b:.4f}" for s in SIDES for k in KS for b in row.interval[s][k]]
            sizes = [str(row.images), str(row.captions)]
            out.writerow([row.name, row.kind, *recalls, f"{row.mean:.4f}", *sizes, *ends])
        return file.getvalue()

    def markdown(self) -> str:
        """A table for a README or an issue."""
        return markdown_table(self.HEADINGS, [row.cells() for row in self.rows])

    def latex(self) -> str:
        """A table for a paper; needs the package booktabs. The best of each column is bold."""
        cells = [row.cells() for row in self.rows]
        best = [max(float(row[i]) for row in cells) for i in range(1, len(self.HEADINGS))]
        lines = [
            r"\begin{tabular}{l" + "r" * 7 + "}",
            r"\toprule",
            r" & \multicolumn{3}{c}{image $\to$ text} & \multicolumn{3}{c}{text $\to$ image} & \\",
            "run & " + " & ".join([*KS, *KS, "mean"]) + r" \\",
            r"\midrule",
        ]
        for name, *figures in cells:
            shown = [
                rf"\textbf{{{value}}}" if float(value) == top else value
                for value, top in zip(figures, best, strict=True)
            ]
            lines.append(" & ".join([_latex(name), *shown]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def compare(
    runs: Sequence[ComparedRun], *, split: str | None = None, bootstrap: Bootstrap | None = None
) -> Comparison:
    """Measure runs on the same images: those of a split that no head among them has seen.

    Args:
        runs: what `open_runs` gave.
        split: only items of this split; None takes all.
        bootstrap: how intervals are drawn.

    Raises:
        EvaluationError: nothing is left to measure on, or stores hold other items.
    """
    bootstrap = bootstrap or Bootstrap()
    galleries, left_out = _common_galleries([run for run in runs if run.store], split)
    reports = {name: gallery_recall(gallery) for name, gallery in galleries.items()}
    first = reports.get(runs[0].name)
    rows, remarks = [], []
    for run in runs:
        report = reports.get(run.name)
        if report is None:
            rows.append(_saved_row(run))
            remarks.append(f"{run.name}: figures from {run.note}, perhaps of another gallery")
        else:
            rows.append(_row(run, report, first if report is not first else None, bootstrap))
    if left_out:
        remarks.append(f"{left_out:,} images that a head has seen are left out, for every run")
    return Comparison(
        rows=rows, runs=runs, galleries=galleries, left_out=left_out, remarks=tuple(remarks)
    )


def _common_galleries(
    runs: Sequence[ComparedRun], split: str | None
) -> tuple[dict[str, Gallery], int]:
    """Each run's gallery: one and the same list of images, none of them seen in training."""
    if not runs:
        return {}, 0
    whole = {run.name: run.store.gallery(split) for run in runs if run.store}
    ids = {name: list(zip(g.sources, g.ids, strict=True)) for name, g in whole.items()}
    first = ids[runs[0].name]
    allowed = set(first)
    for run in runs:
        if set(ids[run.name]) != set(first):
            raise EvaluationError(
                f"{run.name} has {len(ids[run.name]):,} images, {runs[0].name} {len(first):,}, and "
                "they are not the same",
                hint="encode the same source with both, or compare their figures as JSON",
            )
        if isinstance(run.store, ProjectedStore):
            rest, _ = leak_free(whole[run.name], run.store.saved)
            allowed &= set(zip(rest.sources, rest.ids, strict=True))
    if not allowed:
        raise EvaluationError(
            f"every one of the {len(first):,} images was seen in training by some head",
            hint="compare on another `split` or `store`",
        )
    kept = [pair for pair in first if pair in allowed]
    galleries = {}
    for name, gallery in whole.items():
        rows = {pair: i for i, pair in enumerate(ids[name])}
        galleries[name] = gallery.only(np.array([rows[pair] for pair in kept]))
    return galleries, len(first) - len(kept)


def _row(
    run: ComparedRun, report: RecallReport, first: RecallReport | None, bootstrap: Bootstrap
) -> Row:
    spread = recall_intervals(report, bootstrap)
    gain = None
    if first is not None and spread and first.n_captions == report.n_captions:
        difference = report.mean_recall - first.mean_recall
        gain = difference, difference_interval(report, first, bootstrap)
    return Row(
        name=run.name,
        kind=run.kind,
        note=run.note,
        recall={
            side: {f"R@{k}": value for k, value in getattr(report, side).recall.items()}
            for side in SIDES
        },
        interval={side: getattr(spread, side) for side in SIDES} if spread else None,
        mean=report.mean_recall,
        mean_interval=spread.mean_recall if spread else None,
        gain=gain,
        images=report.n_images,
        captions=report.n_captions,
    )


def _saved_row(run: ComparedRun) -> Row:
    figures: Mapping[str, Any] = run.figures or {}
    interval = figures.get("interval")
    bounds = None
    if interval:
        bounds = {side: {k: tuple(b) for k, b in interval[side].items()} for side in SIDES}
    return Row(
        name=run.name,
        kind=run.kind,
        note=run.note,
        recall={side: {k: float(figures[side][k]) for k in KS} for side in SIDES},
        interval=bounds,
        mean=float(figures["mean_recall"]),
        mean_interval=tuple(interval["mean_recall"]) if interval else None,
        gain=None,
        images=int(figures["n_images"]),
        captions=int(figures["n_captions"]),
    )


def _latex(text: str) -> str:
    return "".join(f"\\{c}" if c in "&%$#_{}" else c for c in text)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a README or an issue: names on the left, figures on the right."""
    lines = ["| " + " | ".join(headings) + " |"]
    lines.append("| --- |" + " ---: |" * (len(headings) - 1))
    for name, *figures in rows:
        lines.append("| " + " | ".join([name.replace("|", "\\|"), *figures]) + " |")
    return "\n".join(lines)
