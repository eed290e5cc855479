"""Figures of several caption runs on the same images and references."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval_engine.errors import EvaluationError
from retrieval_engine.evaluate.caption_scores import CaptionScores, caption_scores
from retrieval_engine.evaluate.compare.comparison import markdown_table
from retrieval_engine.evaluate.predictions import read_captions
from retrieval_engine.evaluate.references import PairedCaptions, pair_captions, read_references
from retrieval_engine.metrics.bootstrap import Bootstrap, Interval
from retrieval_engine.metrics.diversity import Diversity, diversity
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.records import Json

METRICS = ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRow:
    """Caption metrics of one run in a comparison.

    Attributes:
        name: of the run.
        captions: (n,) its captions, in the order of the comparison's images.
        scores: metrics, their intervals, and scores of each caption.
        diversity: how varied its captions are.
        gain: mean CIDEr above the first run's, with the bounds of this paired difference.
    """

    name: str
    captions: Sequence[str]
    scores: CaptionScores
    diversity: Diversity
    gain: tuple[float, Interval] | None

    def to_json(self) -> dict[str, Json]:
        """The row as one JSON object."""
        value: dict[str, Json] = {
            "run": self.name,
            "metrics": dict(self.scores.metrics),
            "interval": {name: list(bounds) for name, bounds in self.scores.intervals.items()},
            "diversity": self.diversity.to_json(),
            "n_images": len(self.captions),
        }
        if self.gain:
            value["gain"] = {"CIDEr": self.gain[0], "interval": list(self.gain[1])}
        return value

    def cells(self) -> list[str]:
        """Name and figures, for people; CIDEr and BLEU in percent, as papers have them."""
        figures = [f"{100 * self.scores.metrics[name]:.1f}" for name in METRICS]
        varied = self.diversity
        return [
            self.name,
            *figures,
            f"{varied.mean_length:.1f}",
            f"{100 * varied.repetition_rate:.1f}",
            f"{100 * varied.distinct_captions:.0f}",
            str(varied.vocabulary),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionComparison:
    """Everything a page about caption runs shows.

    Attributes:
        rows: figures, in the order of the runs.
        images: (n,) the images that every run has a caption for.
        references: (n,) their references.
        uris: where images are, by image, as far as a run's file says.
        left_out: images with references that some run has no caption for.
    """

    rows: Sequence[CaptionRow]
    images: Sequence[str]
    references: Sequence[Sequence[str]]
    uris: Mapping[str, str]
    left_out: int

    HEADINGS = (
        *("run", "B@1", "B@4", "ROUGE-L", "CIDEr", "words", "repeated %", "distinct %"),
        "vocabulary",
    )

    def changes(self, count: int) -> tuple[list[int], list[int]]:
        """Images whose CIDEr rose and fell most from the first run to the last.

        Args:
            count: at most so many of each; images that did not change are neither.
        """
        first, last = (row.scores.per_image["CIDEr"] for row in (self.rows[0], self.rows[-1]))
        change = last - first
        order = np.argsort(-change, kind="stable")
        better = [int(i) for i in order[:count] if change[i] > 0]
        worse = [int(i) for i in order[::-1][:count] if change[i] < 0]
        return better, worse

    def csv(self) -> str:
        """One line a run: all metrics, how varied the captions are, and bounds."""
        first = self.rows[0]
        names = list(first.scores.metrics)
        varied = list(first.diversity.to_json())
        ends = [f"{name} {end}" for name in first.scores.intervals for end in ("low", "high")]
        table = [["run", "n_images", *names, *varied, *ends]]
        for row in self.rows:
            figures = [*row.scores.metrics.values(), *row.diversity.to_json().values()]
            figures += [end for bounds in row.scores.intervals.values() for end in bounds]
            table.append([row.name, str(len(row.captions)), *(f"{v:.6g}" for v in figures)])
        return _csv(table)

    def captions_csv(self) -> str:
        """One line an image: what each run says of it, its CIDEr, and the references."""
        names = [row.name for row in self.rows]
        table = [["image", *names, *(f"CIDEr {name}" for name in names), "references"]]
        for number, image in enumerate(self.images):
            said = [row.captions[number] for row in self.rows]
            scores = [f"{row.scores.per_image['CIDEr'][number]:.4f}" for row in self.rows]
            table.append([image, *said, *scores, " | ".join(self.references[number])])
        return _csv(table)

    def markdown(self) -> str:
        """A table for a README or an issue."""
        return markdown_table(self.HEADINGS, [row.cells() for row in self.rows])


def _csv(table: Sequence[Sequence[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(table)
    return file.getvalue()


def compare_captions(
    runs: Sequence[str],
    references: Path | str,
    *,
    split: str | None = None,
    allow_missing: bool = False,
    bootstrap: Bootstrap | None = None,
) -> CaptionComparison:
    """Score several files of captions on the same images.

    Args:
        runs: files in any form that `read_captions` takes; `NAME=FILE` names one.
        references: as `read_references` takes them.
        split: of them, only the images of this split.
        allow_missing: leave out images that some run has no caption for, for every run.
        bootstrap: how intervals are drawn.

    Raises:
        EvaluationError: a file cannot be used, two runs have one name, or captions are missing.
    """
    bootstrap = bootstrap or Bootstrap()
    truth = read_references(references, split=split)
    files = _named(runs)
    pairs = {
        name: pair_captions(read_captions(path), truth, allow_missing=allow_missing)
        for name, path in files.items()
    }
    images, told = _common(pairs)
    whole = next(iter(pairs.values()))
    tokens = [[ptb_tokens(text) for text in told[image]] for image in images]
    rows: list[CaptionRow] = []
    for name, own in pairs.items():
        found = dict(zip(own.images, own.captions, strict=True))
        captions = [found[image] for image in images]
        words = [ptb_tokens(caption) for caption in captions]
        scores = caption_scores(words, tokens, bootstrap=bootstrap)
        gain = _gain(scores, rows[0].scores, bootstrap) if rows and bootstrap.draws else None
        rows.append(
            CaptionRow(
                name=name,
                captions=captions,
                scores=scores,
                diversity=diversity(words),
                gain=gain,
            )
        )
    return CaptionComparison(
        rows=rows,
        images=images,
        references=[told[image] for image in images],
        uris=_uris(list(files.values())),
        left_out=len(whole.images) + len(whole.missing) + len(whole.empty) - len(images),
    )


def _named(runs: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in runs:
        given, _, place = text.rpartition("=")
        name = given or Path(place).stem
        if name in files:
            raise EvaluationError(f"several runs are called {name!r}", hint="name them: NAME=FILE")
        files[name] = Path(os.path.expanduser(place))
    return files


def _common(pairs: Mapping[str, PairedCaptions]) -> tuple[list[str], dict[str, list[str]]]:
    """Images that every run has a caption for, in the references' order, and the references."""
    first = next(iter(pairs.values()))
    shared = set.intersection(*(set(own.images) for own in pairs.values()))
    images = [image for image in first.images if image in shared]
    if not images:
        raise EvaluationError("the runs have no image in common")
    return images, dict(zip(first.images, first.references, strict=True))


def _gain(
    scores: CaptionScores, first: CaptionScores, bootstrap: Bootstrap
) -> tuple[float, Interval]:
    """Mean difference of CIDEr on the same images, and its bounds."""
    change = scores.per_image["CIDEr"] - first.per_image["CIDEr"]
    draws = bootstrap.sums(change[:, None])[:, 0] / len(change)
    return float(change.mean()), bootstrap.interval(draws)


def _uris(files: Sequence[Path]) -> dict[str, str]:
    """Where images are, as our JSON lines say."""
    found: dict[str, str] = {}
    for path in files:
        if path.suffix != ".jsonl":
            continue
        for line in path.read_text(encoding="utf-8").split("\n"):
            row = json.loads(line) if line.strip() else {}
            if "uri" in row and "image" in row:
                found.setdefault(str(row["image"]), str(row["uri"]))
    return found
