"""What a training step minimises, against the authors' numbers and plain formulas."""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from torch.nn.functional import cross_entropy

from retrieval_engine.metrics.recall import recall
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.blip.learner import BlipCaption, BlipRetrieval
from retrieval_engine.models.blip2.learner import Blip2Retrieval
from retrieval_engine.models.learner import open_learner
from retrieval_engine.progress import Silent
from retrieval_engine.records import Json
from retrieval_engine.train.finetune.captioned import CaptionedImages
from retrieval_engine.train.finetune.captioning import (
    IGNORED,
    caption_batch,
    caption_loss_sum,
    collapse,
    greedy_captions,
    variety,
)
from retrieval_engine.train.finetune.config import Task, configure
from retrieval_engine.train.finetune.retrieval import recall_figures
from retrieval_engine.train.finetune.retrieval_losses import (
    draw_matching_pairs,
    itc_in_batch,
    itc_momentum,
)
from retrieval_engine.train.finetune.trainer import FinetuneRun
from retrieval_engine.train.finetune.vision_states import padded
from tests import tiny, tiny_blip2
from tests.children import in_children
from tests.finetune_process import gradients, one_step_of_each
from tests.finetune_stores import scenes_store
from tests.golden import GOLDEN, import_golden

BLIP, BLIP2 = GOLDEN["blip"], GOLDEN["blip2"]
LOSS = 1e-4
GRADIENT = 2e-5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("losses")


@pytest.fixture(scope="module")
def blip_store(root: Path) -> Path:
    return scenes_store(root / "store", tiny.save_blip(root / "blip"))


@pytest.fixture(scope="module")
def captioner(root: Path) -> Path:
    """A captioner with the vision tower of the store's model."""
    from transformers import BlipForConditionalGeneration

    tiny.save_blip_captioner(root / "captioner", seed=3)
    return share_tower(root / "blip", root / "captioner", BlipForConditionalGeneration)


def share_tower(source: Path, target: Path, kind: Any) -> Path:
    from safetensors.torch import load_file

    model = kind.from_pretrained(target)
    tower = {n: v for n, v in load_file(source / "model.safetensors").items() if "vision" in n}
    model.load_state_dict(tower, strict=False)
    model.save_pretrained(target)
    return target


def golden_captions(tmp_path: Path) -> tuple[BlipCaption, CaptionedImages, Tensor]:
    checkpoint = resolve(str(import_golden("blip/caption", tmp_path / "caption")))
    learner = open_learner(checkpoint, Task.CAPTION, with_tower=False, dtype=torch.float32)
    assert isinstance(learner, BlipCaption)
    learner.model.eval()
    owner = BLIP["txt2img"]
    data = CaptionedImages(
        ids=[str(i) for i in range(12)],
        keys=[str(i) for i in range(12)],
        uris=[""] * 12,
        rows=np.arange(12),
        same=np.arange(12),
        texts=BLIP.captions,
        starts=np.searchsorted(owner, np.arange(13)),
    )
    return learner, data, torch.from_numpy(BLIP["cap_vision_last_hidden_state"])


def lm_loss(learner: BlipCaption, data: CaptionedImages, captions: Any, states: Tensor) -> Tensor:
    batch = caption_batch(learner, data, captions, np.empty(0))
    with torch.inference_mode():
        logits = learner.logits(learner.read(states), batch.ids, batch.mask)
    return caption_loss_sum(logits, batch.labels, smoothing=0.1) / batch.count


def test_lm_losses_are_the_authors_caption_by_caption_and_as_a_batch(tmp_path: Path) -> None:
    learner, data, states = golden_captions(tmp_path)
    owner = BLIP["txt2img"]
    found = [
        lm_loss(learner, data, np.array([[j]]), states[owner[j] : owner[j] + 1]) for j in range(20)
    ]
    np.testing.assert_allclose(found, BLIP["lm_loss"], atol=LOSS)
    whole = lm_loss(learner, data, np.arange(20)[:, None], states[owner])
    assert float(whole) == pytest.approx(float(BLIP["lm_loss_batch"]), abs=LOSS)


def test_ids_and_labels_are_the_authors(tmp_path: Path) -> None:
    learner, data, _ = golden_captions(tmp_path)
    batch = caption_batch(learner, data, np.arange(20)[:, None], np.empty(0))
    length = batch.ids.shape[-1]
    np.testing.assert_array_equal(batch.ids[:, 0], BLIP["lm_input_ids"][:, :length])
    np.testing.assert_array_equal(batch.labels[:, 0], BLIP["lm_labels"][:, :length])
    assert (BLIP["lm_labels"][:, length:] == IGNORED).all()


def test_captions_of_an_image_together_cost_the_same_loss(tmp_path: Path) -> None:
    learner, data, states = golden_captions(tmp_path)
    table = np.full((12, 3), -1)
    for i in range(12):
        own = np.arange(data.starts[i], data.starts[i + 1])
        table[i, : len(own)] = own
    together = lm_loss(learner, data, table, states)
    assert float(together) == pytest.approx(float(BLIP["lm_loss_batch"]), abs=LOSS)


def test_trap_loss_on_the_prompt_is_another_number(tmp_path: Path) -> None:
    learner, data, states = golden_captions(tmp_path)
    batch = caption_batch(learner, data, np.arange(20)[:, None], np.empty(0))
    labels = batch.ids.masked_fill(batch.mask == 0, IGNORED)
    with torch.inference_mode():
        logits = learner.logits(learner.read(states[BLIP["txt2img"]]), batch.ids, batch.mask)
    with_prompt = caption_loss_sum(logits, labels, smoothing=0.1) / (labels[..., 1:] >= 0).sum()
    assert abs(float(with_prompt) - float(BLIP["lm_loss_batch"])) > 0.05


def test_captions_written_are_the_authors_greedy_ones(tmp_path: Path) -> None:
    learner, _, states = golden_captions(tmp_path)
    found = greedy_captions(learner, states)
    expected = BLIP.expected["generation"]["greedy_30_1"]["captions"]
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.startswith(ours)
        assert ours == theirs or len(learner.tokenizer(ours)["input_ids"]) >= 20


def test_matching_logits_are_the_authors(tmp_path: Path) -> None:
    checkpoint = resolve(str(import_golden("blip/retrieval", tmp_path / "retrieval")))
    learner = open_learner(checkpoint, Task.RETRIEVAL, with_tower=False, dtype=torch.float32)
    assert isinstance(learner, BlipRetrieval)
    assert not [n for n, _ in learner.model.named_parameters() if "vision_model" in n]
    states = torch.from_numpy(BLIP["vision_last_hidden_state"])
    assert off(every_pair(learner, states, BLIP.captions), BLIP["itm_logits_enc"]) < LOSS
    with torch.inference_mode():
        ids, mask = padded(learner.tokenize(BLIP.captions), learner.pad_id)
        assert off(learner.embed_images(states)[:, 0], BLIP["image_embeds"]) < 1e-5
        assert off(learner.embed_texts(ids, mask), BLIP["text_embeds"]) < 1e-5


def test_matching_logits_of_blip2_are_the_authors(tmp_path: Path) -> None:
    checkpoint = resolve(str(import_golden("blip2", tmp_path / "blip2")))
    learner = open_learner(checkpoint, Task.RETRIEVAL, with_tower=False, dtype=torch.float32)
    assert isinstance(learner, Blip2Retrieval)
    learner.model.eval()
    states = torch.from_numpy(BLIP2["vision_ln_hidden_state"])
    found = every_pair(learner, states, BLIP2.captions)[..., 1]
    assert off(found, BLIP2["itm_logit_pos"]) < LOSS


def every_pair(learner: BlipRetrieval | Blip2Retrieval, states: Tensor, texts: list[str]) -> Tensor:
    ids, mask = padded(learner.tokenize(texts), learner.pad_id)
    shape = (len(states), *ids.shape)
    with torch.inference_mode():
        seen = learner.cross.keys_values(states)
        ids = learner.match_ids(ids).expand(shape).contiguous()
        return learner.cross.logits(seen, ids, mask.expand(shape).contiguous())


def off(found: Tensor, expected: Any) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found.numpy() - expected).max())


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def test_momentum_loss_is_the_authors_formula() -> None:
    b, queue, alpha, temperature = 5, 7, 0.3, 0.05
    image, text, image_m, text_m = (unit(b, 8, seed=i) for i in range(4))
    image_all = torch.cat((image_m, unit(queue, 8, seed=5)))
    text_all = torch.cat((text_m, unit(queue, 8, seed=6)))
    idx = torch.tensor([0, 1, 1, 2, 3])
    idx_all = torch.cat((idx, torch.tensor([3, 9, 9, 1, 8, 7, 6])))
    # BLIP_Retrieval.forward, line by line
    pos = torch.eq(idx[:, None], idx_all[None]).float()
    sim_targets = pos / pos.sum(1, keepdim=True)
    i2t_m = image_m @ text_all.t() / temperature
    t2i_m = text_m @ image_all.t() / temperature
    i2t_targets = alpha * i2t_m.softmax(1) + (1 - alpha) * sim_targets
    t2i_targets = alpha * t2i_m.softmax(1) + (1 - alpha) * sim_targets
    i2t, t2i = image @ text_all.t() / temperature, text @ image_all.t() / temperature
    loss_i2t = -(i2t.log_softmax(1) * i2t_targets).sum(1).mean()
    loss_t2i = -(t2i.log_softmax(1) * t2i_targets).sum(1).mean()
    found = itc_momentum(
        (image, text),
        (image_all, text_all),
        idx[:, None] == idx_all[None],
        temperature=torch.tensor(temperature),
        alpha=alpha,
    )
    assert float(found) == pytest.approx(float(loss_i2t + loss_t2i) / 2, rel=1e-6)


def test_in_batch_loss_is_label_smoothed_cross_entropy_and_shares_over_equal_images() -> None:
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(6)
    plain = [cross_entropy(s, rows, label_smoothing=0.1) for s in (scores, scores.T)]
    assert float(itc_in_batch(scores, rows, 0.1)) == pytest.approx(float(sum(plain)) / 2, rel=1e-6)
    same = torch.tensor([0, 0, 1, 2, 3, 4])
    target = (same[:, None] == same[None]).float()
    target = 0.9 * target / target.sum(1, keepdim=True) + 0.1 / 6
    expected = -(target * scores.log_softmax(1)).sum() - (target * scores.T.log_softmax(1)).sum()
    assert float(itc_in_batch(scores, same, 0.1)) == pytest.approx(float(expected) / 12, rel=1e-6)


def test_recall_takes_the_best_vector_and_any_caption_and_gives_ties_to_the_lower_index() -> None:
    images = torch.tensor([[[1.0, 0], [0, 1]], [[0, -1], [0, 1]], [[0, 0.5], [0, 0.5]]])
    texts = torch.tensor([[0.0, 1], [1, 0], [0, -1], [0.0, 1]])
    owner = torch.tensor([0, 0, 1, 2])
    found = recall_figures(recall(images.numpy(), texts.numpy(), owner.numpy()))
    assert found["text_to_image@1"] == 75.0  # the last text is image 2's, and it comes third
    # images 1 and 2 score text 0 as high as their own, and 0 is the lower number
    assert found["image_to_text@1"] == pytest.approx(100 / 3)
    ones = np.ones((20, 1), np.float32)
    collapsed = recall_figures(recall(ones, ones, np.arange(20)))
    assert collapsed["text_to_image@1"] == 5.0


def options(store: Path, **given: Json) -> dict[str, Json]:
    return {
        "store": str(store),
        "batch_size": 8,
        "seed": 4,
        "dtype": "float32",
        "device": "cpu",
        "augment": False,
        **given,
    }


def one_step(
    task: Task, out: Path, given: Mapping[str, Json]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    run = FinetuneRun(configure(task, **given), out, Silent())
    try:
        return gradients(run)
    finally:
        run.close()


def assert_equal(
    a: tuple[dict[str, Tensor], dict[str, float]], b: tuple[dict[str, Tensor], dict[str, float]]
) -> None:
    assert a[1] == pytest.approx(b[1], abs=1e-5)
    assert a[0].keys() == b[0].keys()
    largest = max(float(value.abs().max()) for value in a[0].values())
    assert largest > 1e-3
    for name, value in a[0].items():
        torch.testing.assert_close(value, b[0][name], atol=GRADIENT * largest, rtol=1e-4)


@pytest.mark.parametrize("micro", [3, 1])
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(
    tmp_path: Path, blip_store: Path, micro: int
) -> None:
    whole = one_step(Task.RETRIEVAL, tmp_path / "a", options(blip_store))
    pieces = one_step(Task.RETRIEVAL, tmp_path / "b", options(blip_store, micro_batch=micro))
    assert_equal(whole, pieces)
    assert set(whole[1]) == {"itc", "itm", "temperature"}


def test_captions_in_pieces_have_the_gradient_of_the_whole(
    tmp_path: Path, blip_store: Path, captioner: Path
) -> None:
    given = options(blip_store, model=str(captioner), captions_per_image=2)
    whole = one_step(Task.CAPTION, tmp_path / "a", given)
    assert_equal(whole, one_step(Task.CAPTION, tmp_path / "b", {**given, "micro_batch": 4}))


@pytest.mark.parametrize("task", Task)
def test_cached_states_give_the_losses_and_gradients_of_pixels_with_a_frozen_tower(
    tmp_path: Path, blip_store: Path, captioner: Path, task: Task
) -> None:
    given = options(blip_store)
    if task is Task.CAPTION:
        given["model"] = str(captioner)
    cached = one_step(task, tmp_path / "a", given)
    pixels = {**given, "from_pixels": True, "freeze_vision": True}
    assert_equal(cached, one_step(task, tmp_path / "b", pixels))


def test_keys_and_values_of_an_image_are_computed_once_for_all_its_pairs(
    tmp_path: Path, blip_store: Path
) -> None:
    run = FinetuneRun(configure(Task.RETRIEVAL, **options(blip_store)), tmp_path / "run", Silent())
    rows: list[int] = []
    model: Any = run.learner.model
    key = model.text_encoder.encoder.layer[0].crossattention.self.key
    key.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    gradients(run)
    run.close()
    assert rows == [8], "8 images, 8 true, 8 false texts and 8 false images"


def test_two_processes_with_half_the_batch_have_the_gradients_of_one_with_the_whole(
    tmp_path: Path, blip_store: Path, captioner: Path
) -> None:
    given = {
        Task.RETRIEVAL: options(blip_store),
        Task.CAPTION: options(blip_store, model=str(captioner)),
    }
    # As torchrun does: the port is open before the processes begin, and no other program's.
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "ACCELERATE_USE_CPU": "true"}
    halves = json.dumps({task: {**own, "micro_batch": 2} for task, own in given.items()})

    def half(rank: int) -> None:
        os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
        one_step_of_each(halves, str(tmp_path))

    for ended in in_children(partial(half, 0), partial(half, 1)):
        assert ended.code == 0, ended.output
    for task, own in given.items():
        board = tmp_path / task / "tensorboard" / task
        assert len(list(board.glob("events.out.*"))) == 1, "the first process alone tells a tracker"
        saved = torch.load(tmp_path / f"{task}.pt", weights_only=True)
        whole = one_step(task, tmp_path / f"{task} alone", own)
        assert_equal(whole, (saved["gradients"], saved["losses"]))


def test_the_queue_holds_a_pass_at_most_and_knows_equal_images(
    tmp_path: Path, blip_store: Path
) -> None:
    config = configure(Task.RETRIEVAL, **options(blip_store, queue=20))
    run = FinetuneRun(config, tmp_path / "run", Silent())
    for step in range(4):
        gradients(run, step)
    images, texts, same = run.objective.state_dict()["queue"]
    run.close()
    assert images.shape == texts.shape == (20, 16)
    np.testing.assert_allclose(images.norm(dim=1), 1, atol=1e-5)
    newest = run.sets.train.same[run.order(3).images]
    np.testing.assert_array_equal(same[:8], newest)


def test_no_caption_of_the_same_image_is_ever_a_negative(tmp_path: Path, blip_store: Path) -> None:
    given = options(blip_store, batch_size=64)
    run = FinetuneRun(configure(Task.RETRIEVAL, **given), tmp_path / "run", Silent())
    same = torch.from_numpy(run.sets.train.same[run.order(0).images])
    assert len(set(same.tolist())) < 64, "some image is twice in the batch"
    scores = torch.eye(64) * 20 + (same[:, None] == same[None]) * 20.0
    ids = torch.ones(64, 4, dtype=torch.long)
    for step in range(20):
        pairs = draw_matching_pairs(scores, same, ids, ids, seed=step)
        assert (same[pairs.text_of] != same).all()
        assert (same[pairs.image_of] != same).all()
        assert pairs.count == 192
    run.close()


def test_variety_names_collapse() -> None:
    alike = ["a dog on grass"] * 9 + ["a cat"]
    assert "90% of captions are 'a dog on grass'" in collapse(alike, variety(alike))
    looping = [f"{w} a dog a dog a dog" for w in "abcdefghij"]
    assert "repetition" in collapse(looping, variety(looping))
    fine = [f"the {a} {b} runs" for a in ("red", "blue", "big") for b in ("dog", "cat", "man")]
    assert collapse(fine, variety(fine)) == ""


def test_blip2_learns_from_the_maximum_over_its_queries(tmp_path: Path) -> None:
    model = tiny_blip2.save_blip2(tmp_path / "blip2")
    store = scenes_store(tmp_path / "store", model, scenes="scenes:12?seed=3")
    found, losses = one_step(Task.RETRIEVAL, tmp_path / "a", options(store))
    assert set(losses) == {"itc", "itm", "temperature"}
    assert float(found["query_tokens"].abs().max()) > 0
    assert float(found["vision_projection.weight"].abs().max()) > 0
