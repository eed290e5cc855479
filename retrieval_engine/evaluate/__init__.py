"""Exact Recall@K and the other figures that may be published.

The public names load on first use: captions are scored without waiting for torch.
"""

from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.evaluate.caption_scores import CaptionReport, evaluate_captions
    from retrieval_engine.evaluate.evaluation import Evaluation, RecallSettings, evaluate_store
    from retrieval_engine.evaluate.store_recall import evaluate_recall, gallery_recall
    from retrieval_engine.metrics.bootstrap import Bootstrap
    from retrieval_engine.metrics.intervals import RecallIntervals, recall_intervals
    from retrieval_engine.metrics.race import Ties
    from retrieval_engine.metrics.ranks import Ranks
    from retrieval_engine.metrics.recall import DirectionReport, RecallReport, recall_at_k

__all__ = [
    "Bootstrap",
    "CaptionReport",
    "DirectionReport",
    "Evaluation",
    "Ranks",
    "RecallIntervals",
    "RecallReport",
    "RecallSettings",
    "Ties",
    "evaluate_captions",
    "evaluate_recall",
    "evaluate_store",
    "gallery_recall",
    "recall_at_k",
    "recall_intervals",
]


__getattr__ = lazily(
    __name__,
    {
        ".caption_scores": ("CaptionReport", "evaluate_captions"),
        ".evaluation": ("Evaluation", "RecallSettings", "evaluate_store"),
        ".store_recall": ("evaluate_recall", "gallery_recall"),
        "retrieval_engine.metrics.bootstrap": ("Bootstrap",),
        "retrieval_engine.metrics.intervals": ("RecallIntervals", "recall_intervals"),
        "retrieval_engine.metrics.race": ("Ties",),
        "retrieval_engine.metrics.ranks": ("Ranks",),
        "retrieval_engine.metrics.recall": ("DirectionReport", "RecallReport", "recall_at_k"),
    },
)
