"""Exact Recall@K and the other figures that may be published.

The public names load on first use: captions are scored without waiting for torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval_engine.evaluate.bootstrap import Bootstrap
    from retrieval_engine.evaluate.caption_metrics import CaptionReport, evaluate_captions
    from retrieval_engine.evaluate.evaluation import Evaluation, RecallSettings, evaluate_store
    from retrieval_engine.evaluate.intervals import RecallIntervals, recall_intervals
    from retrieval_engine.evaluate.race import Ties
    from retrieval_engine.evaluate.ranks import Ranks
    from retrieval_engine.evaluate.recall import (
        DirectionReport,
        RecallReport,
        evaluate_recall,
        gallery_recall,
        recall_at_k,
    )

_HOMES = {
    "Bootstrap": "bootstrap",
    "CaptionReport": "caption_metrics",
    "DirectionReport": "recall",
    "Evaluation": "evaluation",
    "Ranks": "ranks",
    "RecallIntervals": "intervals",
    "RecallReport": "recall",
    "RecallSettings": "evaluation",
    "Ties": "race",
    "evaluate_captions": "caption_metrics",
    "evaluate_recall": "recall",
    "evaluate_store": "evaluation",
    "gallery_recall": "recall",
    "recall_at_k": "recall",
    "recall_intervals": "intervals",
}

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


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
