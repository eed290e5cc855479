"""`vlre pretrain`: training, resuming, any source, and what cannot be trained."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from transformers import (
    BertTokenizer,
)

from retrieval_engine.cli import main
from retrieval_engine.errors import TrainingError
from retrieval_engine.progress import Silent
from retrieval_engine.train.pretrain import PretrainConfig, pretrain
from retrieval_engine.train.pretrain.trainer import Run
from retrieval_engine.train.runlog import read_log
from tests.pretraining import CONFIG, STEPS


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A model trained without interruption."""
    out = tmp_path_factory.mktemp("trained") / "model"
    pretrain(CONFIG, out, cache=cache)
    return out


def losses(out: Path) -> list[dict[str, Any]]:
    lines = read_log(out / "log.jsonl")
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def tensors(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(out / "model.safetensors")
    return found


# Training


def test_losses_fall(tmp_path: Path, cache: Path) -> None:
    config = PretrainConfig(
        source=CONFIG.source,
        preset="micro",
        steps=20,
        batch_size=24,
        concept_share=0.4,
        other_lr=8e-3,
        eval_every=20,
        dtype="float32",
    )
    pretrain(config, tmp_path / "m", cache=cache)
    lines = losses(tmp_path / "m")
    for name, share in (("concept", 0.7), ("region", 0.8), ("lm", 0.9)):
        values = [line[name] for line in lines if name in line]
        assert values[-1] < share * values[0], (name, values)


class Killed(Silent):
    """Interrupts a run after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, what: str, total: int | None) -> None:
        self.is_training = what == "pretraining"

    def advance(self, steps: int = 1) -> None:
        self.left -= steps * self.is_training
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.whole
@pytest.mark.parametrize("after", [5, 13])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    trained: Path, cache: Path, tmp_path: Path, after: int
) -> None:
    """Killed in the concept stage and in the joint stage, some steps after a checkpoint."""
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        pretrain(CONFIG, out, cache=cache, progress=Killed(after))
    assert losses(out)[-1]["step"] < STEPS
    pretrain(CONFIG, out, cache=cache, resume=True)
    assert losses(out) == losses(trained)
    expected = tensors(trained)
    assert all(torch.equal(value, expected[name]) for name, value in tensors(out).items())


def test_resuming_another_run_is_refused(cache: Path, tmp_path: Path) -> None:
    started = Run(CONFIG, tmp_path, cache, Silent(), resume=False)
    started.save()
    other = PretrainConfig(source=CONFIG.source, preset="micro", steps=STEPS, batch_size=25)
    with pytest.raises(TrainingError, match="other options or other data"):
        pretrain(other, tmp_path, cache=cache, resume=True)


def test_an_interrupted_run_is_not_overwritten(cache: Path, tmp_path: Path) -> None:
    Run(CONFIG, tmp_path, cache, Silent(), resume=False).save()
    with pytest.raises(TrainingError, match="holds an interrupted run"):
        pretrain(CONFIG, tmp_path, cache=cache)


def test_a_damaged_checkpoint_is_refused(cache: Path, tmp_path: Path) -> None:
    started = Run(CONFIG, tmp_path, cache, Silent(), resume=False)
    started.save()
    file = tmp_path / "run" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(TrainingError, match="is damaged"):
        pretrain(CONFIG, tmp_path, cache=cache, resume=True)


def test_the_seed_decides(trained: Path, cache: Path, tmp_path: Path) -> None:
    pretrain(CONFIG, tmp_path / "again", cache=cache)
    assert losses(tmp_path / "again") == losses(trained)


def test_a_run_too_short_for_text_still_ends(cache: Path, tmp_path: Path) -> None:
    config = PretrainConfig(source=CONFIG.source, preset="micro", steps=1, batch_size=24)
    assert pretrain(config, tmp_path / "m", cache=cache).best_step == 1


def test_a_run_ends_by_the_clock(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()  # a clock on which every step takes as long, however busy we are
    monkeypatch.setattr(
        "retrieval_engine.train.pretrain.run.time.monotonic", lambda: 0.04 * next(ticks)
    )
    config = PretrainConfig(
        source=CONFIG.source, preset="micro", steps=10**6, minutes=0.01, batch_size=24
    )
    report = pretrain(config, tmp_path / "m", cache=cache)
    assert 7 <= report.steps <= 15
    lines = losses(tmp_path / "m")
    assert "itc" in lines[-2]  # the joint stage had its part of the time


def test_patience_stops_early(cache: Path, tmp_path: Path) -> None:
    config = PretrainConfig(
        source=CONFIG.source,
        preset="micro",
        steps=400,
        batch_size=24,
        concept_share=0,
        eval_every=1,
        patience=2,
        matrix_lr=0,
        other_lr=0,
    )
    report = pretrain(config, tmp_path / "m", cache=cache)
    assert (report.steps, report.best_step) == (3, 3)


# Sources without labels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        colour = ("red", "green", "blue")[i % 3]
        pixels = np.zeros((40, 50, 3), np.uint8)
        pixels[..., i % 3] = rng.integers(150, 255)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"A {colour} wall, all {colour}.\nIt is {colour}\n")
    (folder / "07.png").write_bytes(b"no picture")
    return folder


def test_any_captioned_source_will_do(photos: Path, tmp_path: Path) -> None:
    config = PretrainConfig(
        source=f"folder:{photos}",
        preset="micro",
        steps=6,
        batch_size=12,
        concept_share=0.3,
        dtype="float32",
        tokenizer="",
    )
    report = pretrain(config, tmp_path / "m")
    facts = json.loads((tmp_path / "m" / "training.json").read_text())
    assert facts["unreadable"] == 1
    assert report.steps == 6
    reused = PretrainConfig(
        source=f"folder:{photos}",
        preset="micro",
        steps=1,
        batch_size=12,
        tokenizer=str(tmp_path / "m"),
    )
    pretrain(reused, tmp_path / "n")
    vocabularies = [
        BertTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("m", "n")
    ]
    assert vocabularies[0] == vocabularies[1]


# The command


def vlre(*words: str) -> Result:
    return CliRunner().invoke(main, ["pretrain", *words])


def test_command_trains_and_reports(tmp_path: Path) -> None:
    result = vlre(
        *("scenes:60?seed=3", "--preset", "micro", "--steps", "4", "--batch-size", "16"),
        *("--out", str(tmp_path / "m"), "--json"),
    )
    assert result.exit_code == 0, result.output
    line = json.loads(result.stdout)
    assert line["steps"] == 4
    assert line["out"] == str(tmp_path / "m")
    assert "mean recall" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("scenes:60", "--preset", "giant"), 2, "unknown preset 'giant'; known: micro, tiny"),
        (("scenes:60", "--steps", "0"), 2, "steps is 0; allowed: 1 or more"),
        (("scenes:60", "--concept-share", "1"), 2, "concept-share is 1.0"),
        (("scenes:20", "--preset", "micro"), 1, "19 usable captioned items to train on"),
        (("scenes:140", "--preset", "micro", "--resume"), 1, "nothing to resume"),
        (("scenes:140", "--preset", "micro", "--device", "cuda:7"), 2, "device cuda:7"),
        (("scenes:140", "--preset", "micro", "--tokenizer", "/nowhere"), 2, "no tokenizer"),
    ],
)
def test_command_explains_what_cannot_be(
    tmp_path: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    result = vlre(*words, "--out", str(tmp_path / "m"))
    assert result.exit_code == code
    assert says in "".join(result.stderr.splitlines()[-2:])
    assert "Traceback" not in result.stderr


def test_no_captions_is_explained(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = vlre(f"folder:{tmp_path}", "--out", str(tmp_path / "m"))
    assert result.exit_code == 1
    assert "has a caption" in result.stderr


def test_a_finished_model_is_not_overwritten(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "m")
    result = vlre("scenes:60", "--out", str(tmp_path / "m"))
    assert result.exit_code == 1
    assert "already holds a model" in result.stderr
