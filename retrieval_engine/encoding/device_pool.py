"""Models on several devices, each in a process of its own, that share the batches of a run.

    steps of the run ──► threads, one a device ──► the device's process (its model) ──► in order

A batch is taken by whichever device is free: slow ones get less. A process that dies, hangs, raises
or gives NaN is replaced, and its batch is given again, to another device where there is one. A batch
that fails twice is halved until what makes it fail stands alone; an input that failed three times
is given up, and costs nobody but itself.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from retrieval_engine.encoding.device import Device, DeviceTally, Facts, OpenModel, check_same
from retrieval_engine.encoding.steps import Batch, Computed, Step
from retrieval_engine.errors import EncoderError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models import Arrays
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Feature, Modality
from retrieval_engine.workers import Failed
from retrieval_engine.workers.kinds.threads import ThreadPool

_AHEAD_PER_DEVICE = 4
_WHOLE_TRIES, _STRIKES = 2, 3
_MOST_UNOPENED, _MOST_FAILED, _MOST_AT_FIRST = 3, 64, 16
"""A device is given up after so many failures in a row, sooner when it never gave anything."""


@contextmanager
def open_devices(
    devices: Sequence[str], open_model: OpenModel, *, least_s: float = 60.0
) -> Iterator["DevicePool"]:
    """A pool of devices whose models are open; leaving the context ends their processes.

    Args:
        devices: names as torch has them, one for each model; see `machine.devices_of`.
        open_model: `open_model(device=NAME)` opens the model; it travels to the processes, as in
            `partial(open_encoder, "vlre-photo", dtype="float32")`.
        least_s: the least time that a batch has before its process counts as hung.

    Raises:
        EncoderError, UsageError: a model cannot be opened on a device.
        FingerprintMismatch: the devices do not compute the same features.
    """
    pool = DevicePool([Device(name, open_model, least_s=least_s) for name in devices])
    try:
        pool.open()
        yield pool
    finally:
        pool.close()


class DevicePool:
    """See `open_devices`; to a run it is described as an encoder is (`steps.Described`)."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self.devices = list(devices)
        self._facts: Facts
        self._executor = ThreadPoolExecutor(len(devices), thread_name_prefix="vlre-device")
        self._changed = threading.Condition()
        self._alive, self._idle = list(devices), list(devices)
        self._largest = dict.fromkeys(Modality, 1 << 30)
        self._progress: Progress = Silent()
        self._last_word = ""

    def open(self) -> None:
        """Wait until every device has its model."""
        for device in self.devices:
            device.process.start()
        opened: list[Facts] = []
        for device in self.devices:
            facts = device.open()
            if isinstance(facts, Failed):
                raise facts.error or EncoderError(f"device {device.name}: {facts.reason}")
            opened.append(facts)
            check_same(facts, opened[0], device.name)
        self._facts = opened[0]

    def close(self) -> None:
        """End all processes, also those that compute."""
        with self._changed:
            self._alive.clear()
            self._changed.notify_all()
        for device in self.devices:
            device.process.retire()
        self._executor.shutdown(wait=True, cancel_futures=True)
        for device in self.devices:
            device.process.end()

    @property
    def spec(self) -> EncoderSpec:
        """All that decides the numbers."""
        return self._facts.spec

    @property
    def preprocessor(self) -> ImagePreprocessor:
        """What makes pixels of a picture."""
        return self._facts.preprocessor

    @property
    def default_batch_size(self) -> int:
        """Images per batch that suit the first device."""
        return self._facts.default_batch_size

    def features(self, modality: Modality) -> dict[str, Feature]:
        """The features the models emit."""
        return self._facts.offered[modality]

    @property
    def tallies(self) -> list[DeviceTally]:
        """What each device did in the last run."""
        return [device.tally for device in self.devices]

    @property
    def rates(self) -> str:
        """What each device does now, for people."""
        return ", ".join(f"{device.name} {device.images_per_s:,.1f}" for device in self.devices)

    def imap(
        self, steps: Iterable[Step], progress: Progress
    ) -> Iterator[tuple[Step, Computed | None]]:
        """The steps in their order, batches with what became of them, a few a device ahead.

        Args:
            steps: of a run; read by the caller's thread.
            progress: told when a device is given up.

        Raises:
            EncoderError: no device is left.
            FingerprintMismatch: the checkpoint has changed meanwhile.
        """
        self._progress = progress
        for device in self.devices:
            device.tally = DeviceTally(device=device.name)
        pool = ThreadPool(self._executor, ahead=_AHEAD_PER_DEVICE * len(self.devices))
        for step, found in pool.imap(self._computed, steps):
            if isinstance(found, Failed):
                raise found.error or EncoderError(found.reason)
            yield step, found

    def _computed(self, step: Step) -> Computed | None:
        if not isinstance(step, Batch):
            return None
        pieces = step.pieces(self._largest[step.modality])
        return _joined([self._rescued(piece) for piece in pieces])

    def _rescued(self, batch: Batch) -> Computed:
        """A batch, with what must be done where it fails."""
        trials = _Trials(self)
        found = trials.search(batch)
        if len(found) == 1 or any(piece.bad for piece in found):
            return _joined(found)
        # Nothing is wrong with any input. The batch as a whole has the same bytes whoever computes
        # it; where even now it fails there is not enough memory for it.
        answer = trials.attempt(batch)
        if not isinstance(answer, Failed):
            return Computed(keys=batch.keys, arrays=answer)
        self._largest[batch.modality] = max(len(piece.keys) for piece in found)
        return _joined(found)

    def attempt(self, batch: Batch, but: Device | None) -> tuple[Arrays | Failed, Device]:
        """A batch computed by a device that is free, by another one than `but` if possible."""
        while True:
            device = self._taken(but)
            try:
                opened = device.open()
                if not isinstance(opened, Failed):
                    answer = device.compute(batch)
                    self._last_word = answer.reason if isinstance(answer, Failed) else ""
                    return answer, device
                but, self._last_word = device, opened.reason
            finally:
                self._put_back(device)

    def _taken(self, but: Device | None) -> Device:
        with self._changed:
            while self._alive:
                for device in self._idle:
                    if device is not but or len(self._alive) == 1:
                        self._idle.remove(device)
                        return device
                self._changed.wait()
        raise EncoderError(f"no device is left to compute on; the last said: {self._last_word}")

    def _put_back(self, device: Device) -> None:
        is_new = not (device.tally.images or device.tally.captions)
        most = _MOST_AT_FIRST if is_new else _MOST_FAILED
        with self._changed:
            if device.failed < most and device.unopened < _MOST_UNOPENED:
                self._idle.append(device)
            elif device in self._alive:
                self._alive.remove(device)
                self._progress.say(f"device {device.name} is given up: {self._last_word}")
            self._changed.notify_all()


@dataclass(slots=True)
class _Trials:
    """What is tried with a batch until each of its inputs is computed or given up."""

    pool: DevicePool
    failed: Device | None = None

    def attempt(self, batch: Batch) -> Arrays | Failed:
        """One trial, by another device than the one that failed last."""
        answer, device = self.pool.attempt(batch, self.failed)
        if isinstance(answer, Failed):
            self.failed = device
        return answer

    def search(self, batch: Batch, strikes: int = 0, reason: str = "") -> list[Computed]:
        """What can be computed of a batch that failed so often, and what cannot, in its order."""
        if len(batch) == 1 and strikes >= _STRIKES:
            return [Computed(keys=[], arrays={}, bad={batch.keys[0]: reason})]
        halved = strikes >= _WHOLE_TRIES and len(batch) > 1
        found: list[Computed] = []
        for piece in batch.pieces((len(batch) + 1) // 2 if halved else len(batch)):
            answer = self.attempt(piece)
            if isinstance(answer, Failed):
                found += self.search(piece, strikes + 1, answer.reason)
            else:
                found.append(Computed(keys=piece.keys, arrays=answer))
        return found


def _joined(pieces: Sequence[Computed]) -> Computed:
    """Pieces of a batch as one."""
    if len(pieces) == 1:
        return pieces[0]
    some = [piece.arrays for piece in pieces if len(piece.keys)]
    names = some[0] if some else {}
    return Computed(
        keys=[key for piece in pieces for key in piece.keys],
        arrays={name: np.concatenate([arrays[name] for arrays in some]) for name in names},
        bad={key: reason for piece in pieces for key, reason in piece.bad.items()},
    )
