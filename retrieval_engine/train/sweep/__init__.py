"""Sweeps: `sweep(plan, out, trainer)` looks for the settings of a training that validate best."""

from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.train.sweep.plan import Span, SweepPlan
    from retrieval_engine.train.sweep.run import SweepReport, Trainer, sweep

__all__ = ["Span", "SweepPlan", "SweepReport", "Trainer", "sweep"]

__getattr__ = lazily(
    __name__,
    {
        ".plan": ("Span", "SweepPlan"),
        ".run": ("SweepReport", "Trainer", "sweep"),
    },
)
