"""Trackers: what is in log.jsonl is there, under the same names and steps; read back from their files."""

import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.cli.options import tracker_option
from retrieval_engine.progress import Silent
from retrieval_engine.records import Json
from retrieval_engine.train.finetune import Task, configure, finetune
from retrieval_engine.train.head import HeadRecipe, train_head
from retrieval_engine.train.pretrain import PretrainConfig, pretrain
from retrieval_engine.train.runlog import read_log
from retrieval_engine.train.trackers import TRACKERS, RunTracker
from tests import tiny
from tests.finetune_stores import scenes_store
from tests.paired_vectors import paired_store

# Of tensorboard itself, and of what it reads its files with.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Scalars = dict[tuple[str, int], float]


def logged(path: Path, along: str = "step") -> Scalars:
    """Numbers of a log by name and step, those of the same step together."""
    found: Scalars = {}
    for line in read_log(path):
        step = int(line.pop(along) if along == "step" else line[along])
        for name, value in line.items():
            inner = value if isinstance(value, dict) else {"": value}
            for last, number in inner.items():
                if isinstance(number, int | float):
                    found[f"{name}/{last}".rstrip("/"), step] = number
    return found


def shown(folder: Path) -> Scalars:
    """What TensorBoard would show of the one run in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [place] = {file.parent for file in folder.glob("*/events.out.*")}
    events: Any = EventAccumulator(str(place))
    events.Reload()
    names = events.Tags()["scalars"]
    return {(name, event.step): event.value for name in names for event in events.Scalars(name)}


def hyper_parameters(folder: Path) -> dict[str, object]:
    import yaml

    [file] = folder.rglob("hparams.yml")
    return cast("dict[str, object]", yaml.safe_load(file.read_text()))


def test_tensorboard_shows_a_head_s_log(tmp_path: Path) -> None:
    store = paired_store(tmp_path / "store", 40)
    recipe = HeadRecipe(epochs=2, dim=8, refit_below=0)
    train_head(store, tmp_path / "mlp", recipe, tracker="tensorboard")
    expected = logged(tmp_path / "mlp" / "log.jsonl", "epoch")
    assert ("text_to_image/R@10", 2) in expected
    found = shown(tmp_path / "mlp" / "tensorboard")
    assert found == pytest.approx(expected, rel=1e-6)
    settings = hyper_parameters(tmp_path / "mlp" / "tensorboard" / "mlp")
    assert {"epochs": 2, "kind": "linear", "lr": 2e-3}.items() <= settings.items()
    train_head(store, tmp_path / "plain", recipe)
    assert not (tmp_path / "plain" / "tensorboard").exists()


class Killed(Silent):
    """Interrupts a training after so many steps."""

    left = 12

    def advance(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise KeyboardInterrupt

    def start(self, what: str, total: int | None) -> None:
        self.left = 22 if what == "pretraining" else 10**6


@pytest.mark.whole
def test_a_resumed_pretraining_goes_on_in_the_same_run(tmp_path: Path) -> None:
    config = PretrainConfig(
        source="scenes:60?seed=1", preset="micro", steps=30, batch_size=24, eval_every=10
    )
    out = tmp_path / "my-blip"
    how: dict[str, Any] = {"cache": tmp_path / "cache", "tracker": "tensorboard"}
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, out, progress=Killed(), **how)
    first = shown(out / "tensorboard")
    assert max(step for _, step in first) == 20
    kept = out / "run" / "tracker.json"
    late = RunTracker("tensorboard", out, {}, kept=kept, from_step=20)  # after the checkpoint
    late.log({"lost": 1.0}, 21)
    late.close()
    pretrain(config, out, resume=True, **how)
    found = shown(out / "tensorboard")
    assert found.pop(("lost", 21), None) is None
    expected = logged(out / "log.jsonl")
    assert {name for name, _ in expected} >= {"lm", "mean_recall", "text_to_image@1"}
    assert found == pytest.approx(expected, rel=1e-6)
    assert first.items() <= found.items()
    settings = hyper_parameters(out / "tensorboard" / "my-blip")
    recorded = json.loads((out / "training.json").read_text())["config"]
    assert settings == {name: value for name, value in recorded.items() if value is not None}
    assert not (out / "run").exists()


def records(file: Path) -> Iterator[Any]:
    """The records of a run of Weights & Biases that stayed on this machine (LevelDB's log format)."""
    from wandb.proto import wandb_internal_pb2

    new: Any = wandb_internal_pb2.Record

    data, at, parts = file.read_bytes(), 7, b""
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the whole of it, or its last part
            record = new()
            record.ParseFromString(parts)
            yield record
            parts = b""


def whole(file: Path) -> list[Any]:
    """All records of a run that was finished: its own process writes the last of them a moment later."""
    until, found = time.monotonic() + 60, list[Any]()
    while not found or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < until, "the run did not end"
        found = list(records(file))
        time.sleep(0.02)
    return found


@pytest.mark.service
@pytest.mark.skipif(find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_wandb_offline_keeps_a_fine_tuning_s_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    blip = tiny.save_blip(tmp_path / "blip")
    scenes_store(tmp_path / "store", blip, scenes="scenes:12?seed=7")
    given: dict[str, Json] = {"max_steps": 2, "batch_size": 4, "device": "cpu", "dtype": "float32"}
    config = configure(Task.RETRIEVAL, store=str(tmp_path / "store"), **given)
    finetune(config, tmp_path / "tuned", tracker="wandb")
    [file] = (tmp_path / "tuned" / "wandb").glob("offline-run-*/*.wandb")
    found: Scalars = {}
    settings: dict[str, object] = {}
    for record in whole(file):
        line = {item.key or "/".join(item.nested_key): item for item in record.history.item}
        for name, item in line.items():
            if not name.startswith("_"):
                step = int(json.loads(line["_step"].value_json))
                found[name, step] = json.loads(item.value_json)
        settings |= {item.key: json.loads(item.value_json) for item in record.config.update}
        if record.WhichOneof("record_type") == "run":
            assert (record.run.project, record.run.display_name) == ("vlre", "tuned")
    assert found == pytest.approx(logged(tmp_path / "tuned" / "log.jsonl"))
    assert {"task": "retrieval", "max_steps": 2, "batch_size": 4}.items() <= settings.items()
    kept, run = tmp_path / "tracker.json", file.stem.removeprefix("run-")
    kept.write_text(json.dumps({"tracker": "wandb", "run": run}))
    again = RunTracker("wandb", tmp_path / "later", {"a": 1}, kept=kept, from_step=2)
    again.log({"loss": 0.5}, 3)
    again.close()
    [more] = (tmp_path / "later" / "wandb").glob(f"offline-run-*/run-{run}.wandb")
    lines = [record.history for record in whole(more) if record.history.item]
    assert len(lines) == 1
    assert json.loads(kept.read_text()) == {"tracker": "wandb", "run": run}


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="it is installed")
@pytest.mark.parametrize(
    "command",
    ["train-head --store STORE", "finetune retrieval --store STORE", "pretrain scenes:60"],
)
def test_a_tracker_that_is_not_installed_is_one_line_before_any_work(
    tmp_path: Path, command: str
) -> None:
    out, store = str(tmp_path / "out"), paired_store(tmp_path / "store", 4)
    command = command.replace("STORE", str(store.path))
    result = CliRunner().invoke(main, [*command.split(), "--out", out, "--tracker", "mlflow"])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "Error: mlflow is not installed",
        "hint: install it with `pip install 'vlre[mlflow]'`",
    ]
    assert not Path(out).exists()


def test_the_trackers_are_accelerate_s_own() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(TRACKERS) <= set(LOGGER_TYPE_TO_CLASS)
    command = CliRunner().invoke(main, ["train-head", "--help"])
    assert "[tensorboard|wandb|trackio|mlflow]" in command.stdout
    assert tracker_option is not None
