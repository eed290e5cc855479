"""Sweeps: real heads on a small store, settings from the file to the report."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from retrieval_engine.cli import main
from retrieval_engine.cli.sweep_config import read_sweep
from retrieval_engine.errors import EvaluationError, MissingExtra, TrainingError
from retrieval_engine.records import Json
from retrieval_engine.store import Store
from retrieval_engine.train.head import HeadRecipe, train_head
from retrieval_engine.train.runlog import OnValidation, read_log
from retrieval_engine.train.sweep import Span, SweepPlan, sweep
from retrieval_engine.train.sweep.shared_study import SharedStudy
from tests.finetune_stores import scenes_store
from tests.paired_vectors import paired_store

HEAD = """
command = "train-head"
trials = 2
[fixed]
store = "store"
refit-below = 0
dim = 4
epochs = 2
[search]
kind = ["linear", "mlp"]
lr = {low = 1e-3, high = 1e-1, log = true}
batch_size = {low = 8, high = 24, step = 8}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return paired_store(tmp_path_factory.mktemp("sweep") / "store", 40)


@pytest.fixture(autouse=True)
def _here(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("store").symlink_to(store.path)


def run(text: str, *more: str) -> Result:
    Path("sweep.toml").write_text(text)
    return CliRunner().invoke(main, ["study", "sweep", "sweep.toml", *more])


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.whole
def test_a_sweep_keeps_the_best_and_prints_the_command_that_trains_it_again() -> None:
    found = told(run(HEAD, "--json"))
    assert [row["state"] for row in found["trials"]] == ["complete"] * 2
    assert found["best"]["value"] == max(row["value"] for row in found["trials"])
    assert len({row["values"]["lr"] for row in found["trials"]}) == 2
    assert {row["values"]["batch-size"] for row in found["trials"]} <= {8, 16, 24}
    kept = Path(found["weights"])
    assert [folder.name for folder in Path("sweep/trials").iterdir()] == [kept.name]
    again = CliRunner().invoke(main, [*shlex.split(found["command"])[1:], "--json"])
    metrics = json.loads(again.stdout)["metrics"]
    assert metrics["mean_recall"] == pytest.approx(found["best"]["value"], abs=1e-3)
    assert (kept / "head.safetensors").read_bytes() == Path(
        "sweep/best/head.safetensors"
    ).read_bytes()
    page = Path("sweep/report.html").read_text()
    assert "--store store" in page
    assert page.count("data:image/png") == 1  # so few say nothing about importance
    lines = Path("sweep/trials.csv").read_text().splitlines()
    assert lines[0] == "trial,state,mean_recall,kind,lr,batch-size,step,validations,seconds,note"
    assert len(lines) == 3

    more = run(HEAD.replace("trials = 2", "trials = 3"))
    assert more.stderr.count("\ntrial ") == 1
    assert "the best again: vlre train-head --out sweep/best --store store" in more.stdout
    other = run(HEAD.replace("dim = 4", "dim = 5"))
    assert other.exit_code == 1
    assert other.stderr.splitlines() == [
        "Error: sweep holds a sweep of another configuration; only `trials` may change",
        "hint: give the first one, or another --out",
    ]


class Recorded:
    """Trains heads with the settings tried; notes them, and is interrupted when told to."""

    def __init__(self, store: Store, interrupted_at: int = -1) -> None:
        self.store, self.interrupted_at = store, interrupted_at
        self.tried: list[Mapping[str, Json]] = []

    def train(self, values: Mapping[str, Json], out: Path, on_validation: OnValidation) -> int:
        self.tried.append(dict(values))

        def told(step: int, figures: Mapping[str, float]) -> None:
            on_validation(step, figures)
            if len(self.tried) - 1 == self.interrupted_at:
                raise KeyboardInterrupt

        start: Any = {"start": "random", "dim": 4, "refit_below": 0, "patience": 0}
        given: Any = {"epochs": 3, **start, **values}
        return train_head(self.store, out, HeadRecipe(**given), on_validation=told).best_epoch

    def command(self, values: Mapping[str, Json], out: Path) -> str:
        return f"{sorted(values)} {out}"


def plan(**given: Any) -> SweepPlan:
    usual: dict[str, Any] = {"search": {"lr": (0.02, 1e-7)}, "trials": 9}
    return SweepPlan(training="heads", fixed={}, **{**usual, **given})


def test_a_trial_that_validates_worse_than_the_median_ends_early(
    store: Store, tmp_path: Path
) -> None:
    report = sweep(plan(trials=6, seed=1), tmp_path / "out", Recorded(store), keep_all=True)
    tried = [row.values["lr"] for row in report.rows]
    assert tried == [0.02, 0.02, 1e-7, 0.02, 0.02, 1e-7]
    assert [row.state for row in report.rows] == ["complete"] * 5 + ["pruned"]
    for row in report.rows:
        logged = read_log(report.weights.with_name(f"{row.number:04d}") / "log.jsonl")
        assert row.validations == len(logged)
        assert (len(logged) < 4) == (row.state == "pruned")
        assert (report.weights.with_name(f"{row.number:04d}") / "head.json").exists() == (
            row.state != "pruned"
        )
    assert "pruned" in report.page.read_text()


def test_what_was_interrupted_is_done_again(store: Store, tmp_path: Path) -> None:
    made = plan(search={"lr": Span(low=1e-3, high=1e-1, log=True), "epochs": (0, 1)}, trials=3)
    first, second = Recorded(store, interrupted_at=1), Recorded(store)
    with pytest.raises(KeyboardInterrupt):
        sweep(made, tmp_path / "out", first)
    report = sweep(made, tmp_path / "out", second)
    assert len(first.tried) == len(second.tried) == 2
    assert second.tried[0] == first.tried[1]
    assert [row.number for row in report.rows] == [0, 2, 3]
    assert report.elsewhere == 0


def test_settings_that_cannot_be_trained_are_failed_trials(store: Store, tmp_path: Path) -> None:
    trainer = Recorded(store)
    with pytest.raises(TrainingError, match="none of 2 trials came to an end: contrast needs"):
        sweep(plan(search={"batch_size": (1, 1.0)}, trials=2), tmp_path / "out", trainer)
    assert len(trainer.tried) == 2


def test_two_that_share_a_sweep_do_each_trial_once(store: Store, tmp_path: Path) -> None:
    made, out = plan(trials=2), tmp_path / "out"
    one, other = SharedStudy(made, out), SharedStudy(made, out)
    first, second = one.take(), other.take()
    assert first is not None
    assert second is not None
    assert (first[0].number, second[0].number) == (0, 1)
    assert one.take() is None
    one.close()  # as if it had been killed
    again = other.take()
    assert again is not None
    assert (again[0].number, again[1]) == (2, first[1])
    other.close()


def test_an_unknown_figure_ends_the_sweep(store: Store, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="'cider'; this training validates mean_recall, text"):
        sweep(plan(objective="cider"), tmp_path / "out", Recorded(store))


def test_a_listener_may_end_a_training_and_nothing_is_written(store: Store, tmp_path: Path) -> None:
    def refuse(step: int, figures: Mapping[str, float]) -> None:
        assert set(figures) >= {"mean_recall", "text_to_image@1", "image_to_text@10"}
        if step == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        train_head(store, tmp_path / "head", HeadRecipe(dim=4), on_validation=refuse)
    assert [line["epoch"] for line in read_log(tmp_path / "head" / "log.jsonl")] == [0, 1, 2]
    assert not (tmp_path / "head" / "head.json").exists()


WRONG = {
    "trials = 2": {
        "trails = 2": "trails is unknown; known: command, objective, trials, seed, pruning, fixed, "
        "search",
        'trials = "3"': "trials = '3' must be a whole number",
        "trials = 0": "`trials` is 0, must be at least 1",
        'objective = "mrr"': "objective = 'mrr'; train-head has mean_recall, text_to_image@1, ",
        "trials = ": "it is no TOML: ",
    },
    'command = "train-head"': {
        'command = "encode"': "command = 'encode'; allowed: train-head, finetune retrieval, "
    },
    "dim = 4": {
        "dims = 4": "[fixed] dims is no option of train-head; known: batch-size, beside, captions, ",
        'dim = "4"': '[fixed] dim = "4" must be a whole number',
        "weight-decay = -1.0": "[fixed]: --lr must be above 0 and --weight-decay not below, got",
        "dim = true": "[fixed] dim = true must be a whole number",
        'out = "x"': "[fixed] out cannot be given: each trial has its own",
        'split = "test"': '[fixed] split = "test": a sweep looks at no test split',
        'kind = "mlp"': "kind is both fixed and searched",
    },
    'kind = ["linear", "mlp"]': {
        'kind = ["linear", "mpl"]': "[search] kind = \"mpl\": 'mpl' is not one of 'linear', 'mlp'.",
        'kind = ["mlp"]': '[search] kind = ["mlp"] must be two or more, all different',
        'kind = "mlp"': '[search] kind = "mlp" is one value: put it under [fixed]',
        "kind = {low = 1, high = 2}": "[search] kind is no number: give a list of values",
    },
    "{low = 1e-3, high = 1e-1, log = true}": {
        "{low = 1e-3, hihg = 1e-1}": "[search] lr: hihg is unknown; known: low, high, log, step",
        "{low = 1e-3}": "[search] lr has no high",
        "{low = 1e-1, high = 1e-3}": "[search] lr: low = 0.1 is not below high = 0.001",
        "{low = 0, high = 1, log = true}": "[search] lr: low = 0 has no logarithm",
        '{low = "1e-3", high = 1}': '[search] lr.low = "1e-3" must be a number',
        "{low = -1.0, high = 1}": "[search] lr = -1.0: --lr must be above 0 and --weight-decay not",
        "[0.1, -2.0]": "[search] lr = -2.0: --lr must be above 0",
    },
}


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [(right, wrong, line) for right, lines in WRONG.items() for wrong, line in lines.items()],
)
def test_what_is_wrong_in_a_file_is_one_line_before_any_work(
    right: str, wrong: str, line: str
) -> None:
    assert right in HEAD
    result = run(HEAD.replace(right, wrong))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: sweep.toml: {line}")
    assert not Path("sweep").exists()


def test_flags_texts_and_arguments_become_words() -> None:
    text = """
    command = "pretrain"
    objective = "text_to_image@10"
    [fixed]
    source = "scenes:60?seed=1"
    preset = "micro"
    [search]
    layers = {low = 1, high = 2}
    lr = [1e-3, 4e-3]
    """
    Path("sweep.toml").write_text(text)
    made, trainer = read_sweep(Path("sweep.toml"))
    assert made.search["layers"] == Span(low=1, high=2, whole=True)
    line = trainer.command({"layers": 2, "lr": 0.004}, Path("o"))
    expected = "vlre pretrain --out o 'scenes:60?seed=1' --preset micro --layers 2 --lr 0.004"
    assert sorted(shlex.split(line)) == sorted(shlex.split(expected))
    assert trainer.config({"lr": 0.004}).matrix_lr == 0.004
    text = """
    command = "finetune caption"
    [fixed]
    from-cache = false
    select = "cider"
    [search]
    no-augment = [true, false]
    """
    Path("sweep.toml").write_text(text)
    made, trainer = read_sweep(Path("sweep.toml"))
    assert made.objective == "cider"
    assert trainer.command({"no-augment": True}, Path("o")) == (
        "vlre finetune caption --out o --from-pixels --select cider --no-augment"
    )
    assert trainer.config({"no-augment": False}).from_pixels
    result = run('command = "pretrain"\n[search]\nsteps = [1, 2]')
    assert result.stderr == "Error: sweep.toml: [fixed]: Missing argument 'SOURCE'.\n"


def test_without_optuna_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Store
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match="optuna is not installed"):
        sweep(plan(), tmp_path / "out", Recorded(store))
    assert not (tmp_path / "out").exists()


@pytest.mark.whole
def test_killed_and_shared_by_two_processes(store: Store) -> None:
    text = HEAD.replace("trials = 2", "trials = 8").replace("epochs = 2", "epochs = 9")
    text = f"pruning = false\n{text}"
    Path("sweep.toml").write_text(text)
    script = str(Path(__file__).parents[1] / "cli.py")
    words = [sys.executable, script, "study", "sweep", "sweep.toml", "--json"]
    quiet: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    killed = subprocess.Popen(words, **quiet)
    until = time.monotonic() + 120
    while (
        len(list(Path("sweep/trials").glob("*.lock"))) == 0
        or not Path("sweep/trials/0001").exists()
    ):
        assert time.monotonic() < until
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    both = [subprocess.Popen(words, **quiet) for _ in range(2)]
    outs = [each.communicate(timeout=240) for each in both]
    assert [each.returncode for each in both] == [0, 0], outs
    last = max((json.loads(out) for out, _ in outs), key=lambda found: len(found["trials"]))
    assert len(last["trials"]) == 8
    assert last["elsewhere"] == 0
    lines = [line for _, err in outs for line in err.splitlines() if line.startswith("trial ")]
    assert len(lines) == len(set(lines)) >= 6
    assert all(any(line.startswith("trial ") for line in err.splitlines()) for _, err in outs)
    assert [folder.name for folder in Path("sweep/trials").iterdir()] == [
        Path(last["weights"]).name
    ]
    assert Path("sweep/importance.png").exists()


@pytest.mark.whole
@pytest.mark.parametrize("command", ["finetune retrieval", "finetune caption", "pretrain"])
def test_every_training_can_be_swept(command: str, tmp_path: Path) -> None:
    fixed = (
        'source = "scenes:60?seed=1"\npreset = "micro"\nsteps = 8\nbatch-size = 24\neval-every = 4'
    )
    search = "lr = {low = 1e-4, high = 1e-2, log = true}\nconcept-share = [0.25, 0.5]"
    if command != "pretrain":
        scenes_store(tmp_path / "tokens", Path("vlre-tiny"), scenes="scenes:16?seed=7")
        fixed = 'store = "tokens"\nmax-steps = 2\nbatch-size = 4\neval-every = 1\ndevice = "cpu"'
        search = "lr = {low = 1e-5, high = 1e-3, log = true}\nwarmup = [0.0, 0.5]"
    text = f'command = "{command}"\ntrials = 2\n[fixed]\n{fixed}\n[search]\n{search}'
    found = told(run(text, "--json"))
    assert [row["state"] for row in found["trials"]] == ["complete"] * 2
    assert (Path(found["weights"]) / "training.json").exists()
    assert found["objective"] == ("caption_loss" if "caption" in command else "mean_recall")
    again = CliRunner().invoke(main, [*shlex.split(found["command"])[1:], "--json"])
    report = json.loads(again.stdout)
    value = report["mean_recall"] if command == "pretrain" else report["final"][found["objective"]]
    assert value == pytest.approx(found["best"]["value"], abs=0.01)


@pytest.mark.whole
def test_the_example_of_the_page_works_as_printed() -> None:
    text = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    [config] = re.findall(r"^```toml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    [commands] = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    Path("sweep.toml").write_text(config.replace("trials = 20", "trials = 6"))
    lines = [shlex.split(line)[1:] for line in commands.splitlines()]
    results = [CliRunner().invoke(main, words) for words in lines]
    assert [result.exit_code for result in results] == [0] * len(lines), results[-1].output
    assert results[-1].stderr.count("\ntrial ") == 6
