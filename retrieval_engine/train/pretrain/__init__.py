"""BLIP from scratch: `pretrain(PretrainConfig(source=…), out)`; the recipe is in `trainer.py`."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval_engine.train.pretrain.config import PretrainConfig
    from retrieval_engine.train.pretrain.report import PretrainReport
    from retrieval_engine.train.pretrain.trainer import pretrain

__all__ = ["PretrainConfig", "PretrainReport", "pretrain"]
_HOMES = {"PretrainConfig": "config", "PretrainReport": "report", "pretrain": "trainer"}


def __getattr__(name: str) -> object:
    """Load on first use: the drawing processes import this package and need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
