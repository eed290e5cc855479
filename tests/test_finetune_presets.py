"""Every preset through the command line, by what it does to the run; options given override it."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from retrieval_engine.cli import main
from retrieval_engine.train.finetune import PRESETS, FinetuneConfig, Task
from retrieval_engine.train.schedule import step_factor
from tests import tiny
from tests.finetune_stores import scenes_store
from tests.test_adapters import copy_tower


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    root = tmp_path_factory.mktemp("presets")
    retrieval, captioner = tiny.save_blip(root / "blip"), tiny.save_blip_captioner(root / "cap")
    copy_tower(retrieval, captioner)
    return {Task.RETRIEVAL: retrieval, Task.CAPTION: captioner}


@pytest.fixture(scope="module")
def store(models: dict[Task, Path]) -> Path:
    return scenes_store(
        models[Task.RETRIEVAL].parent / "store", models[Task.RETRIEVAL], scenes="scenes:90?seed=5"
    )


def run(task: Task, model: Path, store: Path, out: Path, *more: str) -> Result:
    words = ["finetune", str(task), "--store", str(store), "--model", str(model)]
    return CliRunner().invoke(main, [*words, "--out", str(out), "--max-steps", "1", *more])


def recorded(out: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((out / "training.json").read_text())["config"]
    return config


@pytest.mark.whole
@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_decides_all_that_nobody_gave(
    tmp_path: Path, store: Path, models: dict[Task, Path], name: str
) -> None:
    preset = PRESETS[name]
    out = tmp_path / "out"
    result = run(preset.task, models[preset.task], store, out, "--preset", name)
    assert result.exit_code == 0, result.output
    expected = FinetuneConfig(task=preset.task, store=str(store), max_steps=1).to_json()
    expected |= {"model": str(models[preset.task]), **preset.values}
    assert recorded(out) == expected
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    peak = float(str(expected["lr"])) or 1e-5 * (768 / 32) ** 2 * 10  # adapters: ten times more
    first = peak * step_factor(0, float(str(expected["warmup"])))
    assert [line["lr"] for line in lines if "lr" in line] == [pytest.approx(first)]
    if spec := str(preset.values.get("lora", "")):
        assert not (out / "model.safetensors").exists(), "an adapter, not a whole model"
        config = json.loads((out / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.05), spec
        tensors = load_file(out / "adapter_model.safetensors")
        assert {min(value.shape) for value in tensors.values()} == {16}
    else:
        assert (out / "model.safetensors").exists()


def test_options_that_are_given_go_before_the_preset(
    tmp_path: Path, store: Path, models: dict[Task, Path]
) -> None:
    out = tmp_path / "out"
    given = ["--preset", "flickr8k-caption", "--lora", "r=2", "--batch-size", "8", "--dtype"]
    result = run(
        Task.CAPTION, models[Task.CAPTION], store, out, *given, "bfloat16", "--select", "loss"
    )
    assert result.exit_code == 0, result.output
    config = recorded(out)
    assert [config[key] for key in ("lora", "batch_size", "dtype", "select")] == [
        *("r=2", 8, "bfloat16", "loss")
    ]
    assert [config[key] for key in ("epochs", "patience", "keep_every")] == [70, 8, 10]


def test_switches_reach_the_run_only_when_given(
    tmp_path: Path, store: Path, models: dict[Task, Path]
) -> None:
    model = models[Task.RETRIEVAL]
    more = ["--batch-size", "4", "--from-pixels", "--no-augment", "--no-itm", "--lora", "r=2"]
    result = run(Task.RETRIEVAL, model, store, tmp_path / "out", *more)
    assert result.exit_code == 0, result.output
    config = recorded(tmp_path / "out")
    assert [config[key] for key in ("from_pixels", "augment", "itm")] == [True, False, False]
