"""A reward for whole captions: what is drawn, how it is weighed, and that it is learned."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from retrieval_engine.cli import main
from retrieval_engine.errors import UsageError
from retrieval_engine.metrics.cider import CiderD, cider_d
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.learner import CaptionLearner, open_learner
from retrieval_engine.records import Json
from retrieval_engine.train.finetune import (
    FinetuneConfig,
    Reward,
    Select,
    Task,
    configure,
    finetune,
)
from retrieval_engine.train.finetune.captioning import written
from retrieval_engine.train.finetune.rewarded import Drawn, policy_loss_sum
from retrieval_engine.train.finetune.trainer import FinetuneRun
from retrieval_engine.train.lora import LoraOptions, attach, matching_modules
from tests import tiny, tiny_blip2


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward") / "store"
    command = ("encode", "scenes:150?seed=3", "--model", "vlre-tiny", "--features", "itc,tokens")
    result = run(*command, "--store", str(path), "--device", "cpu")
    assert result.exit_code == 0, result.output
    return path


def test_scores_against_one_set_are_those_of_the_metric() -> None:
    references = [[["a", "brown", "dog", "runs"], ["a", "dog"]], [["a", "black", "cat", "sleeps"]]]
    captions = [["a", "brown", "dog"], ["a", "cat", "sleeps"]]
    scorer = CiderD(references)
    assert [scorer.scores([c], i)[0] for i, c in enumerate(captions)] == list(
        cider_d(captions, references)
    )
    several = scorer.scores(captions, 1)
    assert several[1] > several[0] == 0


@pytest.mark.parametrize("kind", ["blip", "blip with an adapter", "opt", "t5"])
def test_words_are_drawn_from_the_model_that_is_trained(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "m"
    save = {"opt": tiny_blip2.save_blip2_opt, "t5": tiny_blip2.save_blip2_t5}
    save.get(kind, tiny.save_blip_captioner)(folder, seed=1)
    learner = open_learner(
        resolve(str(folder)), Task.CAPTION, with_tower=False, dtype=torch.float32
    )
    assert isinstance(learner, CaptionLearner)
    if kind == "blip with an adapter":
        attach(
            learner.model,
            LoraOptions.parse("r=4"),
            matching_modules(learner.model, learner.targets),
            name="default",
        )
        for name, parameter in learner.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    learner.model.eval()
    vision = json.loads((folder / "config.json").read_text())["vision_config"]["hidden_size"]
    states = torch.randn(3, 5, vision, generator=torch.Generator().manual_seed(0))
    asked: list[torch.Tensor] = []

    def choose(logits: torch.Tensor) -> torch.Tensor:
        asked.append(logits)
        return logits.topk(2, dim=-1).indices[..., 0, :] if len(asked) == 1 else logits.argmax(-1)

    with torch.no_grad():
        ids, given = written(learner, states, choose, count=2)
        whole = learner.logits(learner.read(states), ids, torch.ones_like(ids))
    assert bool((ids[:, 0] != ids[:, 1]).any())
    for place, logits in enumerate(asked):
        torch.testing.assert_close(logits, whole[:, :, given - 1 + place], atol=1e-4, rtol=1e-4)


def drawn() -> Drawn:
    counts = torch.ones(2, 3, 4, dtype=torch.bool)
    counts[:, :, 0] = False
    counts[1, 2, 3] = False
    ids = torch.randint(0, 7, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    return Drawn(ids=ids, counts=counts, scores=torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]]))


def test_a_caption_is_weighed_by_what_it_has_before_its_image_s_others() -> None:
    torch.testing.assert_close(
        drawn().gains, torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5], [0.0, 0.0, 0.0]])
    )


def test_the_gradient_is_that_of_the_weighed_log_likelihoods() -> None:
    these = drawn()
    logits = torch.randn(
        2, 3, 4, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    ).requires_grad_()
    policy_loss_sum(logits, these).backward()  # type: ignore[no-untyped-call]
    expected = torch.zeros_like(logits)
    chances = (logits.detach() / 0.5).softmax(-1)  # at a temperature of a half
    for i in range(2):
        for n in range(3):
            for place in range(1, 4):
                if these.counts[i, n, place]:
                    wanted = chances[i, n, place - 1].clone()
                    wanted[these.ids[i, n, place]] -= 1
                    expected[i, n, place - 1] += these.gains[i, n] * wanted / 0.5
    torch.testing.assert_close(logits.grad, expected)


def test_the_reward_is_learned(tmp_path: Path, store: Path) -> None:
    out = tmp_path / "o"
    arguments = ("--store", str(store), "--device", "cpu", "--dtype", "float32", "--json")
    result = run(
        *("finetune", "caption", *arguments, "--reward", "cider", "--max-steps", "12"),
        *("--eval-every", "6", "--lr", "2e-4", "--out", str(out)),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["final"]["cider"] > report["start"]["cider"] + 0.05
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(0 < line["reward"] < 10 for line in lines if "reward" in line)
    facts = json.loads((out / "training.json").read_text())["config"]
    assert (facts["reward"], facts["captions_per_image"], facts["select"]) == ("cider", 4, "cider")


def test_a_run_taken_up_again_draws_the_same_captions(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Json] = {"max_steps": 4, "eval_every": 2, "batch_size": 8, "device": "cpu"}
    config = configure(Task.CAPTION, store=str(store), reward="cider", micro_batch=5, **given)
    whole = finetune(config, tmp_path / "whole")
    plain = FinetuneRun._step
    stopped: list[int] = []

    def dies(self: FinetuneRun) -> None:
        if self.state.step == 3 and not stopped:
            stopped.append(3)
            raise KeyboardInterrupt
        plain(self)

    monkeypatch.setattr(FinetuneRun, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, tmp_path / "parts")
    assert finetune(config, tmp_path / "parts").final == whole.final
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "parts")]
    assert weights[0] == weights[1]
    at_once = configure(Task.CAPTION, store=str(store), reward="cider", **given)
    near = finetune(at_once, tmp_path / "once")  # pieces change no draw, and rounding alone
    assert near.final["cider"] == pytest.approx(whole.final["cider"], abs=0.02)


def test_what_a_reward_cannot_be_is_said() -> None:
    config = configure(
        Task.CAPTION, store="s", reward="cider", captions_per_image=2, select="bleu4"
    )
    assert (config.reward, config.select) == (Reward.CIDER, Select.BLEU4)
    with pytest.raises(UsageError, match="of captions"):
        FinetuneConfig(task=Task.RETRIEVAL, store="s", reward=Reward.CIDER)
    with pytest.raises(UsageError, match="at least two of an image: `captions_per_image` is 1"):
        configure(Task.CAPTION, store="s", reward="cider", captions_per_image=1)
    with pytest.raises(UsageError, match="cannot be chosen by it"):
        configure(Task.CAPTION, store="s", reward="cider", select="loss")
