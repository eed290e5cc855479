"""Fine-tuning on what a store holds: `finetune(configure(Task.CAPTION, store=…), out)`.

The recipe is in `trainer.py`; what a family gives to it in `models/learner.py`.
"""

from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.train.finetune.config import (
        PRESETS,
        FinetuneConfig,
        Reward,
        Select,
        Task,
        configure,
    )
    from retrieval_engine.train.finetune.model_output import FinetuneReport
    from retrieval_engine.train.finetune.trainer import finetune

__all__ = [
    "PRESETS",
    "FinetuneConfig",
    "FinetuneReport",
    "Reward",
    "Select",
    "Task",
    "configure",
    "finetune",
]

__getattr__ = lazily(
    __name__,
    {
        ".config": ("PRESETS", "FinetuneConfig", "Reward", "Select", "Task", "configure"),
        ".model_output": ("FinetuneReport",),
        ".trainer": ("finetune",),
    },
)
