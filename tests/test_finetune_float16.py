"""Training in float16: losses are scaled, overflowing steps are skipped, and the run learns."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retrieval_engine.errors import TrainingError
from retrieval_engine.progress import Silent
from retrieval_engine.records import Json
from retrieval_engine.train.finetune import Task, configure, finetune
from retrieval_engine.train.finetune.trainer import FinetuneRun
from tests import tiny, tiny_blip2
from tests.finetune_stores import scenes_store
from tests.test_adapters import copy_tower


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("float16")


@pytest.fixture(scope="module")
def blip(root: Path) -> Path:
    return tiny.save_blip(root / "blip")


@pytest.fixture(scope="module")
def captioner(root: Path, blip: Path) -> Path:
    made = tiny.save_blip_captioner(root / "captioner")
    copy_tower(blip, made)
    return made


@pytest.fixture(scope="module")
def store(root: Path, blip: Path) -> Path:
    return scenes_store(root / "store", blip, scenes="scenes:24?seed=7")


def settings(store: Path, **given: Json) -> dict[str, Json]:
    values: dict[str, Json] = {"store": str(store), "batch_size": 8, "device": "cpu", "lr": 1e-2}
    return values | {"dtype": "float16", "max_steps": 8, "eval_every": 4} | given


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_captions_learn_in_float16_as_in_float32(
    tmp_path: Path, store: Path, captioner: Path
) -> None:
    found = {}
    for dtype in ("float16", "float32"):
        config = configure(Task.CAPTION, **settings(store, model=str(captioner), dtype=dtype))
        found[dtype] = finetune(config, tmp_path / dtype).final["caption_loss"]
    report = json.loads((tmp_path / "float16" / "training.json").read_text())["report"]
    assert found["float16"] < 0.9 * report["start"]["caption_loss"]
    assert found["float16"] == pytest.approx(found["float32"], rel=0.02)
    assert all("skipped" not in line for line in lines(tmp_path / "float16"))


def set_scale(run: FinetuneRun, scale: float) -> None:
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": scale})


@pytest.mark.whole
@pytest.mark.parametrize("more", [{}, {"lora": "r=4", "itm": False}, {"micro_batch": 4}])
def test_retrieval_runs_in_float16(tmp_path: Path, store: Path, more: dict[str, Json]) -> None:
    finetune(configure(Task.RETRIEVAL, **settings(store, max_steps=20, **more)), tmp_path)
    losses = [line["itc"] for line in lines(tmp_path) if "itc" in line]
    assert losses[-1] < losses[0]


def test_an_adapter_of_a_language_model_learns_in_float16(tmp_path: Path) -> None:
    model = tiny_blip2.save_blip2_opt(tmp_path / "model")
    store = scenes_store(tmp_path / "store", model, scenes="scenes:12?seed=3")
    given = settings(store, lora="r=4,targets=opt", batch_size=4)
    report = finetune(configure(Task.CAPTION, **given), tmp_path / "out")
    assert report.final["caption_loss"] < report.start["caption_loss"]


def test_gradients_are_those_of_float32_whatever_the_scale(
    tmp_path: Path, store: Path, captioner: Path
) -> None:
    norms = {}
    for dtype in ("float16", "float32"):
        given = settings(store, model=str(captioner), dtype=dtype, max_steps=1)
        finetune(configure(Task.CAPTION, **given), tmp_path / dtype)
        norms[dtype] = [line["norm"] for line in lines(tmp_path / dtype) if "norm" in line]
    assert norms["float16"] == pytest.approx(norms["float32"], rel=0.02)


def test_a_step_that_overflows_is_skipped_and_the_scale_is_halved(
    tmp_path: Path, store: Path, captioner: Path
) -> None:
    config = configure(Task.CAPTION, **settings(store, model=str(captioner), max_steps=6))
    run = FinetuneRun(config, tmp_path / "out", Silent())
    set_scale(run, 2.0**40)
    before = {name: value.clone() for name, value in run.parts.weights().items()}
    run._step()
    assert (run.state.step, run.state.skipped) == (1, 1)
    assert run.scaler.get_scale() == 2.0**39
    assert all(torch.equal(before[name], value) for name, value in run.parts.weights().items())
    run._step()
    assert run.state.skipped == 2
    run.scaler.update(2.0**16)
    run.train()
    run.finish()
    run.close()
    assert lines(tmp_path / "out")[-2]["skipped"] == 2
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before if name in after)


def test_a_gradient_that_no_scale_makes_finite_ends_the_run(
    tmp_path: Path, store: Path, captioner: Path
) -> None:
    config = configure(Task.CAPTION, **settings(store, model=str(captioner)))
    run = FinetuneRun(config, tmp_path / "out", Silent())
    set_scale(run, 1.0)
    step = run.objective.step

    def endless(*given: Any, **named: Any) -> dict[str, float]:
        losses = step(*given, **named)
        parameter = next(p for p in run.learner.model.parameters() if p.grad is not None)
        assert parameter.grad is not None
        parameter.grad += float("inf")
        return losses

    run.objective.step = endless  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="not finite at step 0"):
        run._step()
    run.close()


def test_a_killed_run_goes_on_with_its_scale(tmp_path: Path, store: Path, captioner: Path) -> None:
    config = configure(Task.CAPTION, **settings(store, model=str(captioner), max_steps=6))
    run = FinetuneRun(config, tmp_path / "out", Silent())
    set_scale(run, 2.0**38)
    run.state.start = {"caption_loss": 9.0}
    run._step()
    run.save()
    run.close()
    again = FinetuneRun(config, tmp_path / "out", Silent())
    assert (again.state.step, again.state.skipped) == (1, 1)
    assert again.scaler.get_scale() == 2.0**37
    again.close()
