"""Bootstrap intervals of recall: images are drawn with all their captions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.metrics.bootstrap import Bootstrap, Interval
from retrieval_engine.metrics.pair_scores import Ints
from retrieval_engine.metrics.ranks import NO_QUERY
from retrieval_engine.metrics.recall import RecallReport
from retrieval_engine.records import Json

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallIntervals:
    """Where a report's recalls may lie, in percent; both directions by `R@k`."""

    image_to_text: dict[str, Interval]
    text_to_image: dict[str, Interval]
    mean_recall: Interval

    def to_json(self) -> dict[str, Json]:
        """The bounds as lists of two."""

        def lists(side: dict[str, Interval]) -> dict[str, Json]:
            return {name: list(bounds) for name, bounds in side.items()}

        return {
            "image_to_text": lists(self.image_to_text),
            "text_to_image": lists(self.text_to_image),
            "mean_recall": list(self.mean_recall),
        }


def recall_intervals(
    report: RecallReport, bootstrap: Bootstrap | None = None
) -> RecallIntervals | None:
    """Intervals of a report's recalls.

    Args:
        report: what `recall` or `evaluate_recall` gave.
        bootstrap: how to draw; 1,000 draws at 95 % by default.

    Returns:
        The intervals, or None for no draws.
    """
    bootstrap = bootstrap or Bootstrap()
    if not bootstrap.draws:
        return None
    ks = list(report.image_to_text.recall)
    to_text, to_image = _draws(report, bootstrap)
    return RecallIntervals(
        image_to_text={f"R@{k}": bootstrap.interval(to_text[:, i]) for i, k in enumerate(ks)},
        text_to_image={f"R@{k}": bootstrap.interval(to_image[:, i]) for i, k in enumerate(ks)},
        mean_recall=bootstrap.interval((to_text + to_image).mean(axis=1) / 2),
    )


def difference_interval(
    report: RecallReport, other: RecallReport, bootstrap: Bootstrap | None = None
) -> Interval:
    """Where the mean recall of one report minus that of another may lie, in percent.

    Both are resampled with the same images, so that what is hard for both cancels out.

    Args:
        report: of a gallery.
        other: of the same images and captions in the same order.
        bootstrap: how to draw; at least one draw.
    """
    bootstrap = bootstrap or Bootstrap()
    means = [np.concatenate(_draws(r, bootstrap), axis=1).mean(axis=1) for r in (report, other)]
    return bootstrap.interval(means[0] - means[1])


def _draws(report: RecallReport, bootstrap: Bootstrap) -> tuple[Floats, Floats]:
    """(draws, len(ks)) recalls in percent of each direction, from one sample of images a draw.

    Images without captions ask nothing: they are of the gallery, and not of what is drawn.
    """
    ks, n = list(report.image_to_text.recall), report.n_images
    image_hits = _hits(report.ranks.image_to_text, np.arange(n), n, ks)
    caption_hits = _hits(report.ranks.text_to_image, report.caption_image, n, ks)
    hits = np.concatenate([image_hits, caption_hits], axis=1)
    sums = bootstrap.sums(hits[hits.any(axis=1)])
    to_text, to_image = (100 * side[:, :-1] / side[:, -1:] for side in np.split(sums, 2, axis=1))
    return to_text, to_image


def _hits(ranks: Ints, image: Ints, n_images: int, ks: list[int]) -> Floats:
    """(n_images, len(ks) + 1): hits within each k, and queries, summed over an image's queries."""
    asked = ranks != NO_QUERY
    columns = [asked & (ranks < k) for k in ks] + [asked]
    return np.stack([np.bincount(image, c, minlength=n_images) for c in columns], axis=1)
