"""A device with a process and models of its own, that does one piece of work after another."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from retrieval_engine.encoding.steps import Described, Work
from retrieval_engine.errors import FingerprintMismatch
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models import Arrays
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.records import Feature, Json, Modality
from retrieval_engine.workers import Failed, Keeper

_FIRST_S, _LEAST_S, _PATIENCE = 600.0, 60.0, 10
_RECENT = 8


class AnyFacts(Protocol):
    """What a process says of what it has opened: at least which models those are."""

    @property
    def specs(self) -> Sequence[EncoderSpec]:
        """All that decides the numbers of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a process says of the encoder it has opened; see `steps.Described`."""

    spec: EncoderSpec
    preprocessor: ImagePreprocessor
    default_batch_size: int
    offered: dict[Modality, dict[str, Feature]]

    @classmethod
    def of(cls, encoder: Described) -> "Facts":
        """The facts of an encoder, which can travel."""
        return cls(
            spec=encoder.spec,
            preprocessor=encoder.preprocessor,
            default_batch_size=encoder.default_batch_size,
            offered={modality: encoder.features(modality) for modality in Modality},
        )

    @property
    def specs(self) -> Sequence[EncoderSpec]:
        """See `AnyFacts`."""
        return [self.spec]

    def features(self, modality: Modality) -> dict[str, Feature]:
        """See `Described`."""
        return self.offered[modality]


class Opened(Protocol):
    """Models that are open, in the process of a device."""

    @property
    def facts(self) -> AnyFacts:
        """What they are."""

    def compute(self, work: Any) -> Arrays:
        """Arrays by name with a row for each input of some work."""


Open = Callable[..., Opened]
"""`open_models(device=NAME)` opens the same models on any device; it can be pickled."""


@dataclass(slots=True, kw_only=True)
class DeviceTally:
    """What a device did in a run.

    Attributes:
        device: its name.
        images: that it computed something of.
        captions: likewise.
        model_seconds: inside the models.
        transfer_seconds: between the processes.
        restarts: how often its process was replaced.
    """

    device: str
    images: int = 0
    captions: int = 0
    model_seconds: float = 0.0
    transfer_seconds: float = 0.0
    restarts: int = 0

    def to_json(self, seconds: float) -> dict[str, Json]:
        """The tally of a run of so many seconds as one JSON object."""
        value: dict[str, Json] = asdict(self)
        value |= {name: round(t, 3) for name, t in value.items() if isinstance(t, float)}
        return value | {"images_per_s": round(self.images / max(seconds, 1e-9), 2)}


class Device:
    """Used by one thread at a time.

    Args:
        name: as torch has it.
        process: where its models are; what it begins is `begin`.
        least_s: the least time that work has, once some was done. It has ten times as long as the
            slowest before it, by their sizes, and the first ten minutes.

    Attributes:
        name: as torch has it, and where it is, `cuda:0@10.0.0.3`, where that is another machine.
        tally: what it did in this run.
        expected: what its models must be, once that is known.
        failed: how often in a row work failed, or its process died before any.
        unopened: how often in a row its models could not be opened.
    """

    def __init__(
        self,
        name: str,
        process: Keeper[AnyFacts, Work, tuple[Arrays, float]],
        *,
        least_s: float = _LEAST_S,
    ) -> None:
        self.name = name
        self.tally = DeviceTally(device=name)
        self.failed = self.unopened = 0
        self.process = process
        self.expected: AnyFacts | None = None
        self._least_s = least_s
        self._slowest: dict[Modality, float] = {}  # seconds an input
        self._reopen_s: float | None = None  # that a replaced process has
        self._facts: AnyFacts | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)

    def open(self) -> AnyFacts | Failed:
        """What its models are; a process that was lost is replaced.

        Raises:
            FingerprintMismatch: the process has other models than are expected.
        """
        if self._facts is not None and self.process.pid is not None:
            return self._facts
        begun, within_s = time.perf_counter(), self._reopen_s
        self.process.start()
        facts = self.process.opened(within_s)
        seconds = time.perf_counter() - begun
        self._say_where()
        if isinstance(facts, Failed):
            # Killed while it began is bad luck, as with a batch; an error will come again.
            comes_again = facts.details or (within_s is not None and seconds >= within_s)
            self.unopened += bool(comes_again)
            self.failed += not comes_again
            return facts
        self._reopen_s = self._reopen_s or _FIRST_S + _PATIENCE * seconds
        if self._facts is not None:
            self.tally.restarts += 1
        check_same(facts, self._facts or self.expected or facts, self.name)
        self.unopened, self._facts = 0, facts
        return facts

    def _say_where(self) -> None:
        if self.process.where:
            self.name = f"{self.name.partition('@')[0]}@{self.process.where}"
            self.tally.device = self.name

    def compute(self, work: Work) -> Arrays | Failed:
        """The arrays of some work; after a `Failed` the next `open` replaces the process."""
        start = time.perf_counter()
        answer = self.process.call(work, self._patience_s(work))
        if isinstance(answer, Failed):
            self.failed += 1
            return answer
        self.failed = 0
        seconds = time.perf_counter() - start
        arrays, model_seconds = answer
        pace = seconds / len(work)
        self._slowest[work.modality] = max(pace, self._slowest.get(work.modality, 0.0))
        self._count(work, model_seconds, seconds - model_seconds)
        return arrays

    def _patience_s(self, work: Work) -> float:
        slowest = self._slowest.get(work.modality)
        if slowest is None:
            return _FIRST_S
        return max(self._least_s, _PATIENCE * slowest * len(work))

    def _count(self, work: Work, model_seconds: float, transfer_seconds: float) -> None:
        self.tally.model_seconds += model_seconds
        self.tally.transfer_seconds += transfer_seconds
        if work.modality is Modality.IMAGES:
            self.tally.images += len(work)
            self._recent.append((time.perf_counter(), len(work)))
        else:
            self.tally.captions += len(work)

    @property
    def images_per_s(self) -> float:
        """Of its last few batches until now."""
        recent = list(self._recent)
        if len(recent) < 2:
            return 0.0
        return sum(n for _, n in recent[1:]) / max(time.perf_counter() - recent[0][0], 1e-9)


def check_same(facts: AnyFacts, expected: AnyFacts, name: str) -> None:
    """Refuse a process whose models are others than those of the pool.

    Raises:
        FingerprintMismatch: they are.
    """
    for seen, wanted in zip(facts.specs, expected.specs, strict=True):
        if seen.fingerprint != wanted.fingerprint:
            hint = "the checkpoint has changed meanwhile"
            if seen.dtype != wanted.dtype:
                both = f"{wanted.dtype} and {seen.dtype}"
                hint = f"devices of several kinds compute in {both}: name one `dtype` for all"
            raise FingerprintMismatch(
                f"what device {name} computes",
                seen=seen.fingerprint,
                expected=wanted.fingerprint,
                hint=hint,
            )


def begin(
    open_models: Open, name: str, threads: int
) -> tuple[AnyFacts, Callable[[Work], tuple[Arrays, float]]]:
    """In the process: open the models, say what they are, and give what computes.

    Args:
        open_models: see `Open`.
        name: of the device, as torch has it.
        threads: for a sum on a CPU. How many share it decides its last bits: it may not depend on
            how many processes there are.
    """
    import torch

    if name == "cpu":
        torch.set_num_threads(threads)
    opened = open_models(device=name)

    def compute(work: Work) -> tuple[Arrays, float]:
        start = time.perf_counter()
        arrays = opened.compute(work)
        return arrays, time.perf_counter() - start

    return opened.facts, compute
