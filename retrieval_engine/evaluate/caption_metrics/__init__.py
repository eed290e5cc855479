"""Caption metrics that are what their names say, equal to the COCO tools, without Java."""

from retrieval_engine.evaluate.caption_metrics.diversity import Diversity
from retrieval_engine.evaluate.caption_metrics.predictions import (
    CaptionFile,
    PairedCaptions,
    pair_captions,
    read_captions,
)
from retrieval_engine.evaluate.caption_metrics.ptb import ptb_tokens
from retrieval_engine.evaluate.caption_metrics.report import (
    CaptionReport,
    caption_scores,
    evaluate_captions,
)

__all__ = [
    "CaptionFile",
    "CaptionReport",
    "Diversity",
    "PairedCaptions",
    "caption_scores",
    "evaluate_captions",
    "pair_captions",
    "ptb_tokens",
    "read_captions",
]
