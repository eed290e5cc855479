"""What a GPU computes against the CPU, for every kind of model and every kind of training.

Tolerances: float32 without TF32 differs in the order of its sums alone, 2e-5 of a unit vector;
float16 rounds at every layer, and its vectors keep a cosine of .999.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from retrieval_engine import open_encoder
from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.generating import write_captions
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.heads import HeadKind
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.models.device import Collected, on_device
from retrieval_engine.models.float8 import _in_one_pass, rounded_rows
from retrieval_engine.records import Modality
from retrieval_engine.testing.encoder_contract import image_batch
from retrieval_engine.train.finetune import configure, finetune
from retrieval_engine.train.finetune.config import Task
from retrieval_engine.train.head import HeadRecipe, train_head
from retrieval_engine.train.pretrain import PretrainConfig, pretrain
from retrieval_engine.train.pretrain.cached.config import CachedConfig
from retrieval_engine.train.pretrain.cached.trainer import CachedRun, pretrain_cached
from tests import tiny, tiny_blip2
from tests.finetune_stores import scenes_store
from tests.paired_vectors import paired_store
from tests.test_adapters import copy_tower
from tests.test_clip import save_clip
from tests.test_pretrain_cached import cache, recipe
from tests.test_siglip import save_siglip

__all__ = ["cache", "recipe"]

_PLACES = [
    pytest.param("cuda", marks=pytest.mark.gpu),
    pytest.param("cpu", marks=pytest.mark.whole),  # so that a test that is out of date is found
]
TEXTS = ["a dog on grass", "a red car", "two birds near the water", "a house at night"]
Saved = Callable[[Path], Path]
MODELS: dict[str, Saved | None] = {
    "blip": tiny.save_blip,
    "blip2": tiny_blip2.save_blip2,
    "blip2-opt": tiny_blip2.save_blip2_opt,
    "blip2-t5": tiny_blip2.save_blip2_t5,
    "clip": save_clip,
    "siglip": save_siglip,
    "vlre-tiny": None,
    "vlre-photo": None,
}
CAPTIONERS: dict[str, Saved | None] = {
    "blip": tiny.save_blip_captioner,
    "blip2-opt": tiny_blip2.save_blip2_opt,
    "blip2-t5": tiny_blip2.save_blip2_t5,
    "vlre-tiny": None,
    "vlre-photo": None,
}


def saved(name: str, known: dict[str, Saved | None], folder: Path) -> str:
    """A tiny checkpoint, or the name of one that ships."""
    save = known[name]
    return name if save is None else str(save(folder / name))


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Of rows along the last axis."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    found: NDArray[np.float64] = (x * y).sum(-1) / np.maximum(lengths, 1e-12)
    return found


# On every machine


@pytest.mark.parametrize("sizes", [[5], [1, 1, 3], [2, 3]])
def test_rows_that_come_in_parts_are_those_that_came(sizes: list[int]) -> None:
    rows = torch.arange(5 * 6).view(5, 2, 3).half()
    found, at = Collected(5), 0
    for size in sizes:
        part = {"a": rows[at : at + size], "b": rows[at : at + size, 0].float()}
        found.add(part, size)
        at += size
    arrays = found.arrays()
    np.testing.assert_array_equal(arrays["a"], rows.numpy())
    np.testing.assert_array_equal(arrays["b"], rows[:, 0].float().numpy())
    assert arrays["a"].dtype == np.float16


def test_pieces_of_a_batch_give_what_the_batch_gives(tmp_path: Path) -> None:
    encoder = open_encoder(str(tiny.save_blip(tmp_path)), device="cpu", dtype="float32")
    pixels = image_batch(encoder, 7)
    names = ["itc", "pooled", "tokens"]
    whole = encoder.encode_images(pixels, names)
    cast("Any", encoder).most_images = 3
    for name, array in encoder.encode_images(pixels, names).items():
        np.testing.assert_allclose(array, whole[name], atol=2e-6)


def test_what_cannot_be_written_is_copied_to_the_device() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1]
    array.setflags(write=False)
    np.testing.assert_array_equal(on_device(array, torch.device("cpu")).numpy(), array)


# On CUDA


@pytest.fixture(params=_PLACES)
def place(request: pytest.FixtureRequest) -> str:
    """The device that is compared with the CPU."""
    return str(request.param)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_are_those_of_the_cpu(name: str, dtype: str, tmp_path: Path, place: str) -> None:
    model = saved(name, MODELS, tmp_path)
    here = open_encoder(model, device="cpu", dtype="float32")
    there = open_encoder(model, device=place, dtype=dtype)
    pixels = image_batch(here, 6)
    for modality in Modality:
        names = [n for n, f in here.features(modality).items() if "float" in f.dtype]
        expected, found = (
            e.encode_images(pixels, names)
            if modality is Modality.IMAGES
            else e.encode_texts(TEXTS, names)
            for e in (here, there)
        )
        for feature in names:
            if dtype == "float32":
                scale = float(np.abs(expected[feature]).max())
                np.testing.assert_allclose(
                    found[feature], expected[feature], atol=1e-4 * scale, err_msg=feature
                )
            assert cosines(found[feature], expected[feature]).min() > 0.999, feature


@pytest.mark.parametrize("name", ["blip", "blip2", "clip", "siglip"])
def test_float8_is_near_float32_and_the_same_alone(name: str, tmp_path: Path, place: str) -> None:
    model = saved(name, MODELS, tmp_path)
    here = open_encoder(model, device="cpu", dtype="float32")
    there = open_encoder(model, device=place, dtype="float8")
    pixels = image_batch(here, 6)
    expected, found = (e.encode_images(pixels, ["itc"])["itc"] for e in (here, there))
    assert cosines(found, expected).min() > 0.98
    alone = there.encode_images(pixels[4:5], ["itc"])["itc"]
    np.testing.assert_allclose(alone[0], found[4], atol=0.01)


@pytest.mark.parametrize("width", [16, 1408, 6144])
def test_rows_are_rounded_in_one_pass_as_in_several(width: int, place: str) -> None:
    x = torch.randn(300, width, device=place, dtype=torch.bfloat16)
    x[0], x[1] = 0, 1e-20
    rows, scales = _in_one_pass()(x) if place == "cuda" else rounded_rows(x.T.contiguous().T)
    wanted, expected = rounded_rows(x)
    torch.testing.assert_close(scales, expected)
    torch.testing.assert_close(rows.float(), wanted.float(), rtol=0.126, atol=0.01)
    assert (rows.float() == wanted.float()).float().mean() > 0.999


def test_pieces_of_a_batch_on_cuda_give_what_single_images_give(place: str) -> None:
    encoder = open_encoder("vlre-photo", device=place, dtype="float32")
    pixels = image_batch(encoder, 9)
    alone = np.concatenate([encoder.encode_images(p[None], ["itc"])["itc"] for p in pixels])
    cast("Any", encoder).most_images = 2
    np.testing.assert_allclose(encoder.encode_images(pixels, ["itc"])["itc"], alone, atol=1e-4)


@pytest.mark.parametrize("name", ["blip", "blip2", "vlre-photo"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float16", 0.05)])
def test_match_scores_are_those_of_the_cpu(
    name: str, dtype: str, tolerance: float, tmp_path: Path, place: str
) -> None:
    model = saved(name, MODELS, tmp_path)
    here = open_encoder(model, device="cpu", dtype="float32")
    there = open_encoder(model, device=place, dtype=dtype)
    tokens = here.encode_images(image_batch(here, 4), ["tokens"])["tokens"]
    pairs = np.array([[i, t] for i in range(4) for t in range(4 - i)])
    expected, found = (
        e.matcher().score_pairs(lambda rows: tokens[rows], TEXTS, pairs) for e in (here, there)
    )
    np.testing.assert_allclose(found, expected, atol=tolerance * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", CAPTIONERS)
@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_those_of_the_cpu(name: str, beams: int, tmp_path: Path, place: str) -> None:
    model = saved(name, CAPTIONERS, tmp_path)
    options = DecodingOptions(beams=beams, max_length=16)
    written = []
    for device in ("cpu", place):
        captioner = open_captioner(model, device=device, dtype="float32")
        pixels = image_batch(captioner, 5)
        tokens = torch.from_numpy(captioner.encode_images(pixels, ["tokens"])["tokens"])
        found = write_captions(captioner, tokens, [str(i) for i in range(5)], options)
        written.append([own[0].ids for own in found])
    same = np.mean([a == b for a, b in zip(*written, strict=True)])
    assert same == 1 or (beams > 1 and same >= 0.8)  # near ties of beams may fall either way


@pytest.mark.parametrize("lora", ["", "r=2"])
@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("dtype", ["float32", "auto", "float16"])
def test_finetuning_takes_steps(
    task: Task, lora: str, dtype: str, tmp_path: Path, place: str
) -> None:
    blip = tiny.save_blip(tmp_path / "blip")
    store = scenes_store(tmp_path / "store", blip, scenes="scenes:24?seed=7")
    model = blip
    if task is Task.CAPTION:
        model = tiny.save_blip_captioner(tmp_path / "captioner")
        copy_tower(blip, model)
    given: dict[str, Any] = {"store": str(store), "model": str(model), "batch_size": 8}
    given |= {"max_steps": 2, "lora": lora, "lr": 1e-3}
    name = "itc" if task is Task.RETRIEVAL else "lm"
    losses: list[float] = []
    for device, arithmetic in (("cpu", "float32"), (place, dtype)):
        out = tmp_path / f"{device}-{len(losses)}"
        finetune(configure(task, device=device, dtype=arithmetic, **given), out)
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses.append(next(line[name] for line in lines if name in line))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_captions_are_drawn_and_rewarded(dtype: str, tmp_path: Path, place: str) -> None:
    blip = tiny.save_blip(tmp_path / "blip")
    store = scenes_store(tmp_path / "store", blip, scenes="scenes:24?seed=7")
    copy_tower(blip, model := tiny.save_blip_captioner(tmp_path / "captioner"))
    given: dict[str, Any] = {"store": str(store), "model": str(model), "batch_size": 8}
    given |= {"max_steps": 3, "reward": "cider", "lr": 1e-3, "dtype": dtype}
    report = finetune(configure(Task.CAPTION, device=place, **given), tmp_path / "out")
    assert report.steps == 3
    lines = [json.loads(x) for x in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    rewards = [line["reward"] for line in lines if "reward" in line]
    assert rewards
    assert np.isfinite(rewards).all()


def test_a_head_beside_itc_is_trained_as_on_the_cpu(tmp_path: Path, place: str) -> None:
    store = paired_store(tmp_path / "store", 240, (24, 24))
    recipe = HeadRecipe(epochs=4, feature="itc", beside=0.5)
    here, there = (
        train_head(store, tmp_path / str(i), recipe, device=device)
        for i, device in enumerate(("cpu", place))
    )
    assert there.best.mean == pytest.approx(here.best.mean, abs=5)


@pytest.mark.parametrize("kind", list(HeadKind))
def test_a_head_is_trained_as_on_the_cpu(kind: HeadKind, tmp_path: Path, place: str) -> None:
    store = paired_store(tmp_path / "store", 240)
    recipe = HeadRecipe(kind=kind, epochs=4, dim=10)
    here, there = (
        train_head(store, tmp_path / str(i), recipe, device=device)
        for i, device in enumerate(("cpu", place))
    )
    assert there.best.mean == pytest.approx(here.best.mean, abs=5)
    assert np.isfinite(there.best.mean)


def test_pretraining_from_scratch_takes_steps(tmp_path: Path, place: str) -> None:
    config = PretrainConfig(
        source="scenes:60?seed=11", preset="micro", steps=6, batch_size=12, eval_every=3
    )
    report = pretrain(dataclasses.replace(config, device=place), tmp_path / "model")
    assert report.steps == 6
    open_encoder(str(tmp_path / "model"), device="cpu")


def test_pretraining_on_states_takes_the_steps_of_the_cpu(
    recipe: CachedConfig, tmp_path: Path, place: str
) -> None:
    plain = dataclasses.replace(recipe, dropout=0.0, eval_every=1)
    logs: list[list[Any]] = []
    for device in ("cpu", place):
        out = tmp_path / f"{device}-{len(logs)}"
        report = pretrain_cached(dataclasses.replace(plain, device=device), out)
        assert report.steps == plain.steps
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        logs.append([line for line in lines if "mean_recall" in line])
        open_encoder(str(out), device="cpu")
        open_captioner(str(out), device="cpu")
    assert len(logs[0]) == len(logs[1]) == plain.steps + 2  # and once the projections are two
    # Dropout inside the BERT draws other numbers there: alike, not equal.
    first = [log[0]["mean_recall"] for log in logs]
    assert first[1] == pytest.approx(first[0], abs=5)


def test_a_step_on_states_has_the_losses_of_the_cpu(
    recipe: CachedConfig, tmp_path: Path, place: str
) -> None:
    from retrieval_engine.progress import Silent
    from retrieval_engine.train.pretrain.cached.cached_objective import Draw

    found: list[dict[str, float]] = []
    for device in ("cpu", place):
        config = dataclasses.replace(recipe, device=device)
        out, states = tmp_path / f"out-{len(found)}", tmp_path / f"states-{len(found)}"
        run = CachedRun(config, out, states, Silent(), False)
        run.model.eval()  # without dropout
        run.objective.learn_bank()
        parts: dict[str, torch.Tensor] = {}
        for fused, size in ((False, config.batch_size), (True, config.fused_size)):
            draw = Draw(step=1, fused=fused, matched=fused, hardness=0.5)
            parts |= run.objective.losses(run.batcher.batch(1, size, 0.5), draw)
        found.append({name: float(value.detach()) for name, value in parts.items()})
    assert set(found[0]) == {"itc", "prototypes", "itm", "lm"}
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=5e-3), name


def test_a_run_that_stopped_on_cuda_goes_on_there(
    recipe: CachedConfig, tmp_path: Path, place: str
) -> None:
    from tests.test_pretrain_cached import _Killed

    config = dataclasses.replace(recipe, device=place)
    with pytest.raises(KeyboardInterrupt):
        pretrain_cached(config, tmp_path / "out", progress=_Killed())
    assert pretrain_cached(config, tmp_path / "out", resume=True).steps == config.steps


def test_a_store_is_encoded_on_cuda_as_on_the_cpu(tmp_path: Path, place: str) -> None:
    opened = partial(open_encoder, "vlre-tiny", dtype="float32")
    options = EncodeOptions(features=("itc", "tokens"), worker_kind="threads")
    vectors: list[NDArray[Any]] = []
    for device in ("cpu", place):
        path = tmp_path / str(len(vectors))
        encode("scenes:40?seed=3", path, encoder=opened(device=device), options=options)
        from retrieval_engine.store import open_store

        vectors.append(open_store(path).gallery().images("itc"))
    assert cosines(vectors[0], vectors[1]).min() > 0.9999
