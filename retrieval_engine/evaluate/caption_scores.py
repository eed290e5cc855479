"""All caption metrics of a file of captions against a file of references."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import EvaluationError
from retrieval_engine.evaluate.predictions import read_captions
from retrieval_engine.evaluate.references import PairedCaptions, pair_captions, read_references
from retrieval_engine.metrics.bleu import bleu, bleu_statistics
from retrieval_engine.metrics.bootstrap import Bootstrap, Interval
from retrieval_engine.metrics.cider import cider_d
from retrieval_engine.metrics.diversity import Diversity, diversity
from retrieval_engine.metrics.meteor import meteor, meteor_is_missing
from retrieval_engine.metrics.ngrams import Tokens
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.metrics.rouge import rouge_l
from retrieval_engine.records import Json

Floats = NDArray[np.float64]
_BLEUS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionScores:
    """Figures of a set of captions.

    Attributes:
        metrics: `BLEU-1`..`BLEU-4`, `ROUGE-L`, `CIDEr` (CIDEr-D, 1.0 is 100 in papers), `METEOR`.
        intervals: where they may lie; METEOR's corpus aggregate has none.
        per_image: (n,) scores of each caption by metric.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    per_image: dict[str, Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionReport:
    """Scores of a run, and what could not be scored.

    Attributes:
        pairs: what was scored and what was not.
        scores: the figures.
        captions: how varied the captions are.
        references: how varied the references are, the first of each image.
        bootstrap: how the intervals were drawn.
    """

    pairs: PairedCaptions
    scores: CaptionScores
    captions: Diversity
    references: Diversity
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def to_json(self) -> dict[str, Json]:
        """The figures and the counts as JSON values."""
        pairs = self.pairs
        return {
            "metrics": dict(self.scores.metrics),
            "interval": {name: list(bounds) for name, bounds in self.scores.intervals.items()},
            "n_scored": len(pairs.images),
            "n_references": sum(map(len, pairs.references)),
            "n_missing": len(pairs.missing),
            "n_empty": len(pairs.empty),
            "n_failed": len(pairs.failed),
            "n_without_references": len(pairs.unreferenced),
            "diversity": self.captions.to_json(),
            "references_diversity": self.references.to_json(),
            "bootstrap": self.bootstrap.to_json(),
            "notes": [*self.notes],
        }

    @property
    def notes(self) -> list[str]:
        """What a reader should know of the figures, one line each."""
        if len(self.pairs.images) > 1:
            return []
        return [
            "CIDEr of one image is 0 whatever it says: words count by how few of the images have "
            "them, and here all images have every word"
        ]

    def rows(self) -> list[dict[str, Json]]:
        """One row an image: its caption, its references and its scores."""
        return [
            {
                "image": image,
                "caption": self.pairs.captions[i],
                "references": list(self.pairs.references[i]),
                **{name: float(scores[i]) for name, scores in self.scores.per_image.items()},
            }
            for i, image in enumerate(self.pairs.images)
        ]


def write_rows(path: Path, report: CaptionReport) -> None:
    """Write each image's caption, references and scores, a JSON line each.

    Raises:
        EvaluationError: the file cannot be written.
    """
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in report.rows())
    try:
        replace_file(path, "".join(lines).encode())
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from error


def evaluate_captions(
    predictions: Path,
    references: Path | str,
    *,
    split: str | None = None,
    allow_missing: bool = False,
    with_meteor: bool = False,
    bootstrap: Bootstrap | None = None,
) -> CaptionReport:
    """Score a file of captions against references.

    Args:
        predictions: one caption an image; see `predictions` for the forms.
        references: any number of captions an image: a file, a store, or the name of a source.
        split: only images whose references are of this split.
        allow_missing: leave out images whose caption is missing, empty or failed, and count them;
            otherwise they are an error.
        with_meteor: run the Java program as well.
        bootstrap: how intervals are drawn.

    Raises:
        EvaluationError: a file cannot be used, captions are missing, or METEOR cannot be run.
    """
    bootstrap = bootstrap or Bootstrap()
    if with_meteor and (reason := meteor_is_missing()):
        raise EvaluationError(f"METEOR cannot be computed: {reason}")
    truth = read_references(references, split=split)
    pairs = pair_captions(read_captions(predictions), truth, allow_missing=allow_missing)
    captions = [ptb_tokens(text) for text in pairs.captions]
    truths = [[ptb_tokens(text) for text in texts] for texts in pairs.references]
    return CaptionReport(
        pairs=pairs,
        scores=caption_scores(captions, truths, with_meteor=with_meteor, bootstrap=bootstrap),
        captions=diversity(captions),
        references=diversity([texts[0] for texts in truths]),
        bootstrap=bootstrap,
    )


def caption_scores(
    captions: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    *,
    with_meteor: bool = False,
    bootstrap: Bootstrap | None = None,
) -> CaptionScores:
    """Score captions that are already tokens.

    Args:
        captions: tokens, one caption an image.
        references: tokens of each image's references, at least one.
        with_meteor: run the Java program as well.
        bootstrap: how intervals are drawn; CIDEr keeps the rarities of the whole set.
    """
    bootstrap = bootstrap or Bootstrap()
    statistics = np.stack(
        [bleu_statistics(c, texts) for c, texts in zip(captions, references, strict=True)]
    )
    means: Mapping[str, Floats] = {
        "ROUGE-L": np.array([rouge_l(c, r) for c, r in zip(captions, references, strict=True)]),
        "CIDEr": cider_d(captions, references),
    }
    metrics = dict(zip(_BLEUS, map(float, bleu(statistics.sum(axis=0))), strict=True))
    metrics |= {name: float(values.mean()) for name, values in means.items()}
    per_image = dict(zip(_BLEUS, bleu(statistics).T, strict=True)) | dict(means)
    intervals: dict[str, Interval] = {}
    if bootstrap.draws:
        sums = bootstrap.sums(
            np.concatenate([statistics, *(v[:, None] for v in means.values())], 1)
        )
        drawn = [*bleu(sums[:, : statistics.shape[1]]).T, *(sums[:, -2:] / len(captions)).T]
        intervals = {n: bootstrap.interval(v) for n, v in zip(metrics, drawn, strict=True)}
    if with_meteor:
        *sentences, metrics["METEOR"] = meteor(captions, references)
        per_image["METEOR"] = np.array(sentences)
    return CaptionScores(metrics=metrics, intervals=intervals, per_image=per_image)
