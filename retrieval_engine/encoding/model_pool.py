"""Models on several devices, each in a process of its own, that share the work of a run.

    work of the run ──► threads, one a device ──► the device's process (its models) ──► in order

Work is taken by whichever device is free: slow ones get less. A process that dies, hangs, raises
or gives NaN is replaced, and its work is given again, to another device where there is one. Work
that fails twice is halved until what makes it fail stands alone; an input that failed three times
is given up, and costs nobody but itself. Where a process runs is `places`' to know; one for which
a cluster has no place yet is asked for nothing.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, cast

import numpy as np

from retrieval_engine.encoding.device import AnyFacts, Device, DeviceTally
from retrieval_engine.encoding.steps import Computed, Work
from retrieval_engine.errors import ClusterFailure, EncoderError
from retrieval_engine.models import Arrays
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Modality
from retrieval_engine.workers import Failed
from retrieval_engine.workers.kinds.threads import ThreadPool

AnyStep = TypeVar("AnyStep")
Told = TypeVar("Told", bound=AnyFacts)
_AHEAD_PER_DEVICE = 4
_WHOLE_TRIES, _STRIKES = 2, 3
_MOST_UNOPENED, _MOST_FAILED, _MOST_AT_FIRST = 3, 64, 16
"""A device is given up after so many failures in a row, sooner when it never gave anything."""
_LOOK_S, _TELL_S, _PLACE_S = 0.05, 10.0, 180.0
"""Between two looks for a place on a cluster; when it is told; how long nobody may have one."""


class ModelPool(Generic[Told]):
    """Devices that have opened the same models, between entering and leaving its context."""

    def __init__(self, devices: Sequence[Device], progress: Progress | None = None) -> None:
        self.devices = list(devices)
        self.facts: Told
        self._executor = ThreadPoolExecutor(len(devices), thread_name_prefix="vlre-device")
        self._changed = threading.Condition()
        self._alive, self._idle = list(devices), list(devices)
        self._largest = dict.fromkeys(Modality, 1 << 30)
        self._progress = progress or Silent()
        self._last_word = ""

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def _open(self) -> None:
        """Wait until every device that has a place has its models, and one has."""
        for device in self.devices:
            device.process.start()
        began, told = time.monotonic(), False
        while not (ready := [device for device in self.devices if device.process.is_ready]):
            waited = time.monotonic() - began
            if waited > _PLACE_S:
                raise _no_room()
            if waited > _TELL_S and not told:
                self._progress.say(f"waiting for a place on the cluster, {_PLACE_S:.0f} s at most")
                told = True
            time.sleep(_LOOK_S)
        for device in ready:
            facts = device.open()
            if isinstance(facts, Failed):
                raise facts.error or EncoderError(f"device {device.name}: {facts.reason}")
            for other in self.devices:
                other.expected = other.expected or facts
        self.facts = cast("Told", self.devices[0].expected)

    def _close(self) -> None:
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
    def tallies(self) -> list[DeviceTally]:
        """What each device did in the last run."""
        return [device.tally for device in self.devices]

    @property
    def rates(self) -> str:
        """What each device does now, for people."""
        return ", ".join(f"{device.name} {device.images_per_s:,.1f}" for device in self.devices)

    def imap(
        self, steps: Iterable[AnyStep], progress: Progress
    ) -> Iterator[tuple[AnyStep, Computed | None]]:
        """The steps in their order, work with what became of it, a few a device ahead.

        Args:
            steps: of a run, `Work` among them; read by the caller's thread.
            progress: told when a device is given up.

        Raises:
            EncoderError: no device is left.
            FingerprintMismatch: the checkpoint has changed meanwhile.
            ClusterFailure: the cluster has no place for any device any more.
        """
        self._progress = progress
        for device in self.devices:
            device.tally = DeviceTally(device=device.name)
        pool = ThreadPool(self._executor, ahead=_AHEAD_PER_DEVICE * len(self.devices))
        for step, found in pool.imap(self._computed, steps):
            if isinstance(found, Failed):
                raise found.error or EncoderError(found.reason)
            yield step, found

    def _computed(self, step: Any) -> Computed | None:
        if not isinstance(step, Work):
            return None
        pieces = step.pieces(self._largest[step.modality])
        return _joined([self._rescued(piece) for piece in pieces])

    def _rescued(self, batch: Work) -> Computed:
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

    def attempt(self, batch: Work, but: Device | None) -> tuple[Arrays | Failed, Device]:
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
        until = 0.0
        with self._changed:
            while self._alive:
                ready = [device for device in self._idle if device.process.is_ready]
                busy = [device for device in self._alive if device not in self._idle]
                is_last = all(device is but for device in (*ready, *busy))
                for device in ready:
                    if device is not but or is_last:
                        self._idle.remove(device)
                        return device
                if not (ready or busy):
                    until = until or time.monotonic() + _PLACE_S
                    if time.monotonic() > until:
                        raise _no_room()
                # Nobody tells when a cluster has found a place.
                self._changed.wait(_LOOK_S if len(ready) < len(self._idle) else None)
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


def _no_room() -> ClusterFailure:
    return ClusterFailure(
        f"no node of the cluster has had room for a model for {_PLACE_S:.0f} s",
        hint="ask for fewer `devices`, or add nodes",
    )


@dataclass(slots=True)
class _Trials:
    """What is tried with a batch until each of its inputs is computed or given up."""

    pool: ModelPool[Any]
    failed: Device | None = None

    def attempt(self, batch: Work) -> Arrays | Failed:
        """One trial, by another device than the one that failed last."""
        answer, device = self.pool.attempt(batch, self.failed)
        if isinstance(answer, Failed):
            self.failed = device
        return answer

    def search(self, batch: Work, strikes: int = 0, reason: str = "") -> list[Computed]:
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
