"""Captions written from stored image states.

from retrieval_engine.caption import CaptionJob, CaptionRequest, DecodingOptions
job = CaptionJob(CaptionRequest(targets=("photos",), options=DecodingOptions(beams=1)))
for row in job.run(): print(row["image"], row["caption"])
"""

from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.caption.caption_run import Captioned, CaptionRun
    from retrieval_engine.caption.decoding import BeamRule, DecodingOptions, Method
    from retrieval_engine.caption.job import CaptionJob, CaptionRequest

__all__ = [
    "BeamRule",
    "CaptionJob",
    "CaptionRequest",
    "CaptionRun",
    "Captioned",
    "DecodingOptions",
    "Method",
]

__getattr__ = lazily(
    __name__,
    {
        ".decoding": ("BeamRule", "DecodingOptions", "Method"),
        ".job": ("CaptionJob", "CaptionRequest"),
        ".caption_run": ("CaptionRun", "Captioned"),
    },
)
