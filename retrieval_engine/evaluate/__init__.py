"""Exact Recall@K and the other figures that may be published."""

from retrieval_engine.evaluate.ranks import Ranks, Ties
from retrieval_engine.evaluate.recall import (
    DirectionReport,
    RecallReport,
    evaluate_recall,
    gallery_recall,
    recall,
    recall_at_k,
)

__all__ = [
    "DirectionReport",
    "Ranks",
    "RecallReport",
    "Ties",
    "evaluate_recall",
    "gallery_recall",
    "recall",
    "recall_at_k",
]
