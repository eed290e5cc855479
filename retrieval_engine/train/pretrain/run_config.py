"""The settings that a pretraining from scratch and one from a backbone's states share."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import ClassVar

from retrieval_engine.errors import UsageError
from retrieval_engine.fingerprint import digest
from retrieval_engine.records import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What every pretraining has. Two equal configs on the same data give the same weights.

    Attributes:
        source: the training data, `kind:argument[?…]`.
        val_source: data to select on; empty takes the source's own, or holds out a twentieth.
        steps: optimiser steps, all stages included.
        minutes: stop after this much training time instead; the schedule follows the clock, so
            such a run is not repeatable bit by bit. 0 is no limit.
        batch_size: pictures in a step.
        weight_decay: of matrices; vectors and embeddings have none.
        warmup: part of each stage in which the step sizes rise.
        clip: largest norm of the gradient.
        label_smoothing: of the caption loss, as in BLIP.
        seed: of everything drawn.
        eval_every: steps between validations.
        device: `auto`, `cpu`, `cuda`, …
        dtype: arithmetic under autocast: `auto`, `bfloat16` or `float32`.
        save_dtype: dtype of the weights on disk.
    """

    APART: ClassVar[tuple[str, ...]] = ("device", "save_dtype")
    """Settings that a resumed run may change."""

    source: str
    val_source: str = ""
    steps: int = 2000
    minutes: float = 0.0
    batch_size: int = 128
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 2.0
    label_smoothing: float = 0.1
    seed: int = 0
    eval_every: int = 100
    device: str = "auto"
    dtype: str = "auto"
    save_dtype: str = "float16"

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            UsageError: a value is out of range; the message names it and what is allowed.
        """
        at_least(self, 1, "steps", "eval_every")
        at_least(self, 2, "batch_size")
        at_least(self, 0, "minutes", "weight_decay")
        below_one(self, "warmup", "label_smoothing")
        one_of("dtype", self.dtype, ("auto", "bfloat16", "float32"))
        one_of("save_dtype", self.save_dtype, ("float16", "float32"))

    @property
    def identity(self) -> str:
        """Digest of what must be equal for a run to be resumed: all but where it computes."""
        return digest({k: v for k, v in asdict(self).items() if k not in self.APART})

    def to_json(self) -> dict[str, Json]:
        """The config as JSON values."""
        return asdict(self)


def at_least(config: RunConfig, least: int, *names: str) -> None:
    """Refuse settings below `least`."""
    for name in names:
        if getattr(config, name) < least:
            raise UsageError(f"`{name}` is {getattr(config, name)}; allowed: {least} or more")


def below_one(config: RunConfig, *names: str) -> None:
    """Refuse shares outside [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise UsageError(f"`{name}` is {getattr(config, name)}; allowed: 0 up to below 1")


def above_zero(config: RunConfig, *names: str) -> None:
    """Refuse shares outside (0, 1]."""
    for name in names:
        if not 0 < getattr(config, name) <= 1:
            raise UsageError(f"`{name}` is {getattr(config, name)}; allowed: above 0 up to 1")


def one_of(name: str, value: str, allowed: Collection[str]) -> None:
    """Refuse a setting that has none of its values."""
    if value not in allowed:
        raise UsageError(f"`{name}` is {value!r}; allowed: {', '.join(allowed)}")
