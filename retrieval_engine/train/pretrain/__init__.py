"""BLIP from scratch: `pretrain(PretrainConfig(source=…), out)`; the recipe is in `trainer.py`."""

from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.train.pretrain.config import PretrainConfig
    from retrieval_engine.train.pretrain.report import PretrainReport
    from retrieval_engine.train.pretrain.trainer import pretrain

__all__ = ["PretrainConfig", "PretrainReport", "pretrain"]

__getattr__ = lazily(
    __name__,
    {
        ".config": ("PretrainConfig",),
        ".report": ("PretrainReport",),
        ".trainer": ("pretrain",),
    },
)
