"""A device with a process and a model of its own, that computes one batch after another."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from retrieval_engine.encoding.steps import Batch
from retrieval_engine.errors import FingerprintMismatch
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.machine import threads_wanted
from retrieval_engine.models import Arrays, Encoder
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.records import Feature, Json, Modality
from retrieval_engine.store.keys import raw_keys
from retrieval_engine.store.shard import check_block
from retrieval_engine.workers import Failed
from retrieval_engine.workers.supervised import Supervised

OpenModel = Callable[..., Encoder]
"""`open_model(device=NAME)` opens the same model on any device; it can be pickled."""
# With torch and transformers they take seconds, which each process would spend anew.
PRELOAD = (__name__, "retrieval_engine.models.blip.encoder")
_FIRST_S, _LEAST_S, _PATIENCE = 600.0, 60.0, 10
_RECENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a process says of the model it has opened; see `steps.Described`."""

    spec: EncoderSpec
    preprocessor: ImagePreprocessor
    default_batch_size: int
    offered: dict[Modality, dict[str, Feature]]


@dataclass(slots=True, kw_only=True)
class DeviceTally:
    """What a device did in a run.

    Attributes:
        device: its name.
        images: that it encoded.
        captions: likewise.
        model_seconds: inside the encoder.
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
        open_model: see `OpenModel`.
        least_s: the least time that a batch has, once one was computed. A batch has ten times as
            long as the slowest before it, by their sizes, and the first ten minutes.

    Attributes:
        tally: what it did in this run.
        failed: how often in a row a batch failed, or its process died before one.
        unopened: how often in a row its model could not be opened.
    """

    def __init__(self, name: str, open_model: OpenModel, *, least_s: float = _LEAST_S) -> None:
        self.name = name
        self.tally = DeviceTally(device=name)
        self.failed = self.unopened = 0
        # A CUDA context does not survive a fork: those processes begin from nothing.
        self.process: Supervised[Facts, Batch, tuple[Arrays, float]] = Supervised(
            partial(_begin, open_model, name), preload=PRELOAD if name == "cpu" else ()
        )
        self._least_s = least_s
        self._slowest: dict[Modality, float] = {}  # seconds an input
        self._reopen_s: float | None = None  # that a replaced process has
        self._facts: Facts | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)

    def open(self) -> Facts | Failed:
        """What its model is; a process that was lost is replaced.

        Raises:
            FingerprintMismatch: the new process has another model than the one before.
        """
        if self._facts is not None and self.process.pid is not None:
            return self._facts
        begun, within_s = time.perf_counter(), self._reopen_s
        self.process.start()
        facts = self.process.opened(within_s)
        seconds = time.perf_counter() - begun
        if isinstance(facts, Failed):
            # Killed while it began is bad luck, as with a batch; an error will come again.
            comes_again = facts.details or (within_s is not None and seconds >= within_s)
            self.unopened += bool(comes_again)
            self.failed += not comes_again
            return facts
        self._reopen_s = self._reopen_s or _FIRST_S + _PATIENCE * seconds
        if self._facts is not None:
            self.tally.restarts += 1
            check_same(facts, self._facts, self.name)
        self.unopened, self._facts = 0, facts
        return facts

    def compute(self, batch: Batch) -> Arrays | Failed:
        """The arrays of a batch; after a `Failed` the next `open` replaces the process."""
        start = time.perf_counter()
        answer = self.process.call(batch, self._patience_s(batch))
        if isinstance(answer, Failed):
            self.failed += 1
            return answer
        self.failed = 0
        seconds = time.perf_counter() - start
        arrays, model_seconds = answer
        pace = seconds / len(batch)
        self._slowest[batch.modality] = max(pace, self._slowest.get(batch.modality, 0.0))
        self._count(batch, model_seconds, seconds - model_seconds)
        return arrays

    def _patience_s(self, batch: Batch) -> float:
        slowest = self._slowest.get(batch.modality)
        if slowest is None:
            return _FIRST_S
        return max(self._least_s, _PATIENCE * slowest * len(batch))

    def _count(self, batch: Batch, model_seconds: float, transfer_seconds: float) -> None:
        self.tally.model_seconds += model_seconds
        self.tally.transfer_seconds += transfer_seconds
        if batch.modality is Modality.IMAGES:
            self.tally.images += len(batch)
            self._recent.append((time.perf_counter(), len(batch)))
        else:
            self.tally.captions += len(batch)

    @property
    def images_per_s(self) -> float:
        """Of its last few batches until now."""
        recent = list(self._recent)
        if len(recent) < 2:
            return 0.0
        return sum(n for _, n in recent[1:]) / max(time.perf_counter() - recent[0][0], 1e-9)


def check_same(facts: Facts, expected: Facts, name: str) -> None:
    """Refuse a process whose model is another than that of the pool.

    Raises:
        FingerprintMismatch: it is.
    """
    seen, wanted = facts.spec.fingerprint, expected.spec.fingerprint
    if seen != wanted:
        hint = "the checkpoint has changed meanwhile"
        if facts.spec.dtype != expected.spec.dtype:
            both = f"{expected.spec.dtype} and {facts.spec.dtype}"
            hint = f"devices of several kinds compute in {both}: name one `dtype` for all"
        raise FingerprintMismatch(
            f"what device {name} computes", seen=seen, expected=wanted, hint=hint
        )


def _begin(
    open_model: OpenModel, name: str
) -> tuple[Facts, Callable[[Batch], tuple[Arrays, float]]]:
    """In the process: open the model, say what it is, and give what computes a batch."""
    import torch

    if name == "cpu":
        # How many threads share a sum decides its last bits: it may not depend on how many
        # processes there are.
        torch.set_num_threads(threads_wanted(1))
    encoder = open_model(device=name)
    facts = Facts(
        spec=encoder.spec,
        preprocessor=encoder.preprocessor,
        default_batch_size=encoder.default_batch_size,
        offered={modality: encoder.features(modality) for modality in Modality},
    )
    return facts, partial(_compute, encoder)


def _compute(encoder: Encoder, batch: Batch) -> tuple[Arrays, float]:
    """Arrays of a batch that a store will take, and the seconds they took."""
    start = time.perf_counter()
    arrays = batch.kept(batch.asked_of(encoder)())
    keys, what = raw_keys(list(batch.keys)), batch.modality.removesuffix("s")
    for form in batch.forms:
        check_block(what, form, arrays[form.name], keys)
    return arrays, time.perf_counter() - start
