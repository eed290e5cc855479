"""Contracts: what every encoder, matcher, captioner, learner, source, index, … must do, as tests.

A plug-in's test is a subclass of three lines that opens the thing; pytest finds the rest:

    from retrieval_engine.testing import SourceContract

    class TestBuckets(SourceContract):
        def build(self, folder): ...

Needs pytest and hypothesis, the extra `testing`. Beside the contracts lie what they are made of:
small images, vectors and stores.
"""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from retrieval_engine.errors import MissingExtra
from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.testing.backend_contract import BackendContract
    from retrieval_engine.testing.captioner_contract import CaptionerContract
    from retrieval_engine.testing.encoder_contract import EncoderContract
    from retrieval_engine.testing.head_contract import HeadContract, ProjectionContract
    from retrieval_engine.testing.index_contract import IndexContract
    from retrieval_engine.testing.learner_contract import (
        CaptionLearnerContract,
        LearnerContract,
        RetrievalLearnerContract,
    )
    from retrieval_engine.testing.matcher_contract import MatcherContract
    from retrieval_engine.testing.metric_contract import CaptionMetricContract, RankMetricContract
    from retrieval_engine.testing.pool_contract import PoolContract
    from retrieval_engine.testing.source_contract import SourceContract
    from retrieval_engine.testing.store_contract import StoreContract

_HOMES = {
    ".backend_contract": ("BackendContract",),
    ".captioner_contract": ("CaptionerContract",),
    ".encoder_contract": ("EncoderContract",),
    ".head_contract": ("HeadContract", "ProjectionContract"),
    ".index_contract": ("IndexContract",),
    ".learner_contract": ("CaptionLearnerContract", "LearnerContract", "RetrievalLearnerContract"),
    ".matcher_contract": ("MatcherContract",),
    ".metric_contract": ("CaptionMetricContract", "RankMetricContract"),
    ".pool_contract": ("PoolContract",),
    ".source_contract": ("SourceContract",),
    ".store_contract": ("StoreContract",),
}

__all__ = [
    "BackendContract",
    "CaptionLearnerContract",
    "CaptionMetricContract",
    "CaptionerContract",
    "EncoderContract",
    "HeadContract",
    "IndexContract",
    "LearnerContract",
    "MatcherContract",
    "PoolContract",
    "ProjectionContract",
    "RankMetricContract",
    "RetrievalLearnerContract",
    "SourceContract",
    "StoreContract",
]

for _library in ("pytest", "hypothesis"):
    if find_spec(_library) is None:
        raise MissingExtra(_library, "testing")

if "pytest" in sys.modules:
    # Before they are imported: a failing assert then shows what it compared.
    sys.modules["pytest"].register_assert_rewrite(*(f"{__name__}{home}" for home in _HOMES))


__getattr__ = lazily(__name__, _HOMES)
