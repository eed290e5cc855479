"""Follows a training in TensorBoard, Weights & Biases, trackio or MLflow, through accelerate's trackers.

What goes there is what goes into `log.jsonl`: the same names, the same steps.
"""

import importlib.util
import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import MissingExtra, UsageError
from retrieval_engine.records import Json

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""Names of the trackers, which are those of their packages and extras too."""
_PROJECT = "vlre"
RUN = "tracker.json"
"""File that keeps which run a training that can be resumed is."""


def check_tracker(name: str) -> None:
    """Make sure that a tracker can be used; empty is none. To be called before any work.

    Raises:
        UsageError: there is no such tracker.
        MissingExtra: its package is not installed.
    """
    if name and name not in TRACKERS:
        raise UsageError(f"`tracker` is {name!r}; allowed: {', '.join(TRACKERS)}")
    if name and importlib.util.find_spec(name) is None:
        raise MissingExtra(name, name)


class RunTracker:
    """One run in a tracker. Only the first process of a training makes one.

    Args:
        name: see `TRACKERS`.
        out: directory of the training; the run is called like it. TensorBoard's files and those of
            Weights & Biases lie in it; the others have places of their own.
        settings: of the training, logged as hyper-parameters.
        kept: file in which a resumable training keeps which run it is; None where it cannot be
            resumed.
        from_step: what was logged up to here stays; 0 begins a new run.
    """

    def __init__(
        self,
        name: str,
        out: Path,
        settings: Mapping[str, Json],
        *,
        kept: Path | None = None,
        from_step: int = 0,
    ) -> None:
        check_tracker(name)
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self._state = None if PartialState._shared_state else PartialState()  # its log needs one
        before = _run_before(name, kept, from_step)
        run = before or secrets.token_hex(4)
        known: Any = LOGGER_TYPE_TO_CLASS[name]
        self._tracker = known(**_places(name, out.resolve(), run, bool(before), from_step))
        self._tracker.start()
        if name == "mlflow":  # it alone chooses a run's id itself
            run = self._tracker.tracker.info.run_id
        if kept is not None:
            replace_file(kept, (json.dumps({"tracker": name, "run": run}) + "\n").encode())
        if not before:
            self._tracker.store_init_configuration(dict(_plain(settings)))

    def log(self, line: Mapping[str, Json], step: int) -> None:
        """The numbers of a line of the log; one inside another, `{"a": {"b": 1}}`, is `a/b`."""
        numbers = {
            name: value
            for name, value in _flat(line)
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
        }
        if numbers:
            self._tracker.log(numbers, step=step)

    def close(self) -> None:
        """Let the tracker write what it holds back."""
        self._tracker.finish()
        if self._state is not None:  # a child of this process may be one of several
            self._state._reset_state()


def _run_before(name: str, kept: Path | None, from_step: int) -> str:
    """The run that is gone on with; empty where a new one begins."""
    if kept is None or not from_step or not kept.is_file():
        return ""
    said = json.loads(kept.read_bytes())
    return str(said["run"]) if said["tracker"] == name else ""


def _places(name: str, out: Path, run: str, goes_on: bool, from_step: int) -> dict[str, Any]:
    """Arguments of accelerate's tracker: where the run is, what it is called, how it goes on."""
    if name == "tensorboard":  # what was logged after the checkpoint is shown no more
        purge = {"purge_step": from_step + 1} if from_step else {}
        return {"run_name": out.name, "logging_dir": str(out / "tensorboard"), **purge}
    if name == "mlflow":
        return {
            "experiment_name": _PROJECT,
            "run_name": out.name,
            "run_id": run if goes_on else None,
        }
    again = {"run_name": _PROJECT, "resume": "allow"}
    if name == "trackio":  # it knows a run by its name
        return {**again, "name": f"{out.name}-{run}"}
    own = {"console": "off"}  # progress bars are no log
    return {**again, "name": out.name, "id": run, "dir": str(out), "settings": own}


def _flat(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{start}{name}/")
        else:
            yield f"{start}{name}", value


def _plain(settings: Mapping[str, Json]) -> Iterator[tuple[str, str | int | float | bool]]:
    """Settings as every tracker takes them: lists as text, what is not set left out."""
    for name, value in _flat(settings):
        if isinstance(value, int | float):
            yield name, value
        elif value is not None:
            yield name, str(value) if isinstance(value, str) else json.dumps(value)
