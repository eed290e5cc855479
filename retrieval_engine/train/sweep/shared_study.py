"""The trials of a sweep in an SQLite file that several processes may work on, and may be killed at.

A trial that runs holds the lock of its folder, which the kernel lets go when the process is gone:
so trials left behind are known at once, whoever comes next.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import MissingExtra, TrainingError
from retrieval_engine.locks import FileLock, Taken
from retrieval_engine.records import Json
from retrieval_engine.train.sweep.plan import Span, SweepPlan

if TYPE_CHECKING:
    import optuna

PLAN, STORAGE, TRIALS = "sweep.json", "trials.sqlite", "trials"
REASON = "reason"
"""Attribute of a failed trial: why. One that was left behind by its process has none."""
_LOCK, _TURN = "running.lock", "turn.lock"
_WAIT_S, _SQLITE_WAIT_S = 0.02, 120


class SharedStudy:
    """One sweep's trials on disk.

    Args:
        plan: what is tried.
        out: directory of the sweep, made when absent.

    Raises:
        MissingExtra: optuna is not installed.
        TrainingError: the directory holds another sweep, or what is no sweep.
    """

    def __init__(self, plan: SweepPlan, out: Path) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingExtra("optuna", "sweep") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.out = plan, out
        self._locks: dict[int, FileLock] = {}
        (out / TRIALS).mkdir(parents=True, exist_ok=True)
        with self.turn():
            _agree(plan, out)
            self._storage = optuna.storages.RDBStorage(
                f"sqlite:///{out.resolve() / STORAGE}",
                engine_kwargs={"connect_args": {"timeout": _SQLITE_WAIT_S}},
            )
            pruners = optuna.pruners
            self.study = optuna.create_study(
                study_name="sweep",
                storage=self._storage,
                load_if_exists=True,
                direction="maximize" if plan.maximize else "minimize",
                sampler=optuna.samplers.RandomSampler(plan.seed),
                pruner=pruners.MedianPruner(n_warmup_steps=1)
                if plan.pruning
                else pruners.NopPruner(),
            )

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else takes up or clears away trials within the block."""
        lock = _wait_for(self.out / _TURN)
        try:
            yield
        finally:
            lock.release()

    def folder(self, number: int) -> Path:
        """Where a trial's training lies."""
        return self.out / TRIALS / f"{number:04d}"

    def take(self) -> "tuple[optuna.Trial, dict[str, Any]] | None":
        """The next trial and what it tries; None where all that are wanted are done or at work."""
        with self.turn():
            self._take_up_left()
            place = len(self.counted())
            if place >= self.plan.trials:
                return None
            trial = self.study.ask()
            shutil.rmtree(self.folder(trial.number), ignore_errors=True)
            self.folder(trial.number).mkdir(parents=True)
            self._locks[trial.number] = FileLock(self._lock(trial.number))
            self.study.sampler = _sampler(self.plan, place)
            return trial, {name: _drawn(trial, name, of) for name, of in self.plan.search.items()}

    def _lock(self, number: int) -> Path:
        """Beside the folder: trainers want that to be theirs alone."""
        return self.out / TRIALS / f"{number:04d}.{_LOCK}"

    def _take_up_left(self) -> None:
        """Count trials whose process is gone as failed, and have what they tried done again."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.name != "RUNNING" or trial.number in self._locks:
                continue
            try:
                lock = FileLock(self._lock(trial.number))
            except Taken:
                continue
            self.study.tell(trial.number, state=_state("FAIL"))
            self.study.enqueue_trial(trial.params)
            shutil.rmtree(self.folder(trial.number), ignore_errors=True)
            lock.release(remove=True)

    def counted(self) -> "list[optuna.trial.FrozenTrial]":
        """Trials that are done or at work, those left behind not among them."""
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.name in ("COMPLETE", "PRUNED", "RUNNING")
            or (trial.state.name == "FAIL" and REASON in trial.user_attrs)
        ]

    def settle(
        self, trial: "optuna.Trial", state: str, value: float | None, notes: Mapping[str, Json]
    ) -> None:
        """Write down how a trial ended: `COMPLETE` with a value, `PRUNED`, or `FAIL`."""
        with self.turn():
            for name, note in notes.items():
                trial.set_user_attr(name, note)
            self.study.tell(trial, value, state=_state(state))
            self._locks.pop(trial.number).release(remove=True)

    def close(self) -> None:
        """Leave what this process has at work to whoever comes next."""
        for number in list(self._locks):
            self._locks.pop(number).release()
        self._storage.engine.dispose()

    def clear(self) -> None:
        """Remove what finished trials have written, but for the best of them."""
        with self.turn():
            best = self.best()
            kept = best.number if best else None
            for trial in self.study.get_trials(deepcopy=False):
                if trial.state.is_finished() and trial.number != kept:
                    shutil.rmtree(self.folder(trial.number), ignore_errors=True)

    def best(self) -> "optuna.trial.FrozenTrial | None":
        """The complete trial with the best value, of equals the first; None before there is any."""
        done = [t for t in self.counted() if t.state.name == "COMPLETE" and t.value is not None]
        sign = -1 if self.plan.maximize else 1
        return min(
            done, key=lambda trial: (sign * float(trial.value or 0), trial.number), default=None
        )


def _wait_for(path: Path) -> FileLock:
    while True:
        try:
            return FileLock(path)
        except Taken:
            time.sleep(_WAIT_S)


def _agree(plan: SweepPlan, out: Path) -> None:
    """Write the plan down, or see that it is the one that was."""
    file = out / PLAN
    if not file.exists():
        if (out / STORAGE).exists():
            raise TrainingError(f"{out} holds trials without {PLAN}", hint="give another `out`")
        text = json.dumps({"identity": plan.identity, **plan.to_json()}, indent=2)
        replace_file(file, f"{text}\n".encode())
        return
    try:
        before = json.loads(file.read_bytes())["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{file} is none of ours", hint="give another `out`") from error
    if before != plan.identity:
        raise TrainingError(
            f"{out} holds a sweep of another configuration; only `trials` may change",
            hint="give the first one, or another `out`",
        )


def _sampler(plan: SweepPlan, place: int) -> Any:
    """TPE (Bergstra et al., NeurIPS 2011), its random numbers decided by a trial's place alone.

    So processes that share a study draw different settings, and a resumed sweep goes on as it
    would have.
    """
    import optuna

    return optuna.samplers.TPESampler(seed=plan.seed * 1_000_003 + place, constant_liar=True)


def _drawn(trial: Any, name: str, tried: Span | tuple[Json, ...]) -> Any:
    if not isinstance(tried, Span):
        return trial.suggest_categorical(name, list(tried))
    if tried.whole:
        whole = int(tried.low), int(tried.high)
        return trial.suggest_int(name, *whole, log=tried.log, step=int(tried.step) or 1)
    return trial.suggest_float(name, tried.low, tried.high, log=tried.log, step=tried.step or None)


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]
