"""LoRA: only it is trained, its base stays as it is, and it changes the fingerprints it must."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from retrieval_engine import open_encoder, open_store
from retrieval_engine.cli import main
from retrieval_engine.encoding.stale import encode_stale
from retrieval_engine.errors import FingerprintMismatch, UsageError, VlreError
from retrieval_engine.models import Encoder
from retrieval_engine.models.adapters import peft_quiet, resolve
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.models.learner import open_learner
from retrieval_engine.records import Json, Modality
from retrieval_engine.train.finetune import FinetuneReport, Task, configure, finetune
from retrieval_engine.train.lora import TARGETS, LoraOptions, matching_modules
from retrieval_engine.train.merging import merge_adapters
from tests import tiny, tiny_blip2
from tests.finetune_stores import scenes_store

SAME = 1e-5


def hashes(directory: Path) -> dict[str, str]:
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def train(task: Task, store: Path, out: Path, **given: Json) -> FinetuneReport:
    values: dict[str, Json] = {"lora": "r=4,alpha=8", "max_steps": 3, "batch_size": 8, "lr": 1e-2}
    values |= {"dtype": "float32", "device": "cpu", "store": str(store), **given}
    return finetune(configure(task, **values), out)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def blip(root: Path) -> Path:
    return tiny.save_blip(root / "blip")


@pytest.fixture(scope="module")
def store(root: Path, blip: Path) -> Path:
    return scenes_store(root / "store", blip, scenes="scenes:24?seed=7")


@pytest.fixture(scope="module")
def captioner(root: Path, blip: Path) -> Path:
    """With the tower of `blip`, whose states are stored."""
    made = tiny.save_blip_captioner(root / "captioner")
    copy_tower(blip, made)
    return made


@pytest.fixture(scope="module")
def adapter(root: Path, blip: Path, store: Path) -> Path:
    before = hashes(blip)
    out = root / "adapter"
    report = train(Task.RETRIEVAL, store, out)
    assert hashes(blip) == before, "the base is unchanged"
    assert report.fingerprint == open_encoder(str(out)).spec.fingerprint
    return out


@pytest.fixture(scope="module")
def base(blip: Path) -> Encoder:
    return open_encoder(str(blip), device="cpu", dtype="float32")


TEXTS = ["a dog on grass", "two birds"]


def vectors(encoder: Encoder) -> Any:
    return encoder.encode_texts(TEXTS, ["itc"])["itc"]


def test_the_count_is_peft_s_over_the_whole_model(adapter: Path, blip: Path) -> None:
    report = json.loads((adapter / "training.json").read_text())["report"]
    model: Any = BlipForImageTextRetrieval.from_pretrained(blip)
    with peft_quiet():
        wrapped: Any = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    trainable, total = wrapped.get_nb_trainable_parameters()
    assert report["trainable"]["parameters"] == trainable == 2 * 2 * 2 * 4 * (32 + 32)
    assert report["trainable"]["percent"] == pytest.approx(100 * trainable / total, abs=1e-4)


def test_every_adapter_weight_was_trained(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert len(tensors) == 16
    assert all(float(value.abs().max()) > 0 for value in tensors.values()), "B begins as zero"


def test_peft_s_own_loading_gives_the_same_vectors(adapter: Path, blip: Path) -> None:
    ours = open_encoder(str(adapter), device="cpu", dtype="float32")
    model: Any = BlipForImageTextRetrieval.from_pretrained(blip).eval()
    with peft_quiet():
        wrapped: Any = PeftModel.from_pretrained(model, str(adapter))
    inner = wrapped.base_model.model
    ids = torch.tensor(ours.encode_texts(TEXTS, ["token_ids"])["token_ids"].astype(np.int64))
    mask = torch.tensor(ours.encode_texts(TEXTS, ["token_mask"])["token_mask"].astype(np.int64))
    with torch.inference_mode():
        states = inner.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        theirs = torch.nn.functional.normalize(inner.text_proj(states), dim=-1).numpy()
    np.testing.assert_allclose(vectors(ours)[:, 0], theirs, atol=SAME)


def test_an_adapter_of_the_text_side_changes_its_fingerprints_alone(
    adapter: Path, base: Encoder
) -> None:
    adapted = open_encoder(str(adapter), device="cpu", dtype="float32")
    assert np.abs(vectors(adapted) - vectors(base)).max() > 1e-3
    assert adapted.spec.fingerprint != base.spec.fingerprint
    assert adapted.spec.adapter
    assert adapted.features(Modality.IMAGES) == base.features(Modality.IMAGES)
    for name, form in adapted.features(Modality.CAPTIONS).items():
        assert form.fingerprint != base.features(Modality.CAPTIONS)[name].fingerprint
    assert adapted.spec.weights["itm"] != base.spec.weights["itm"]
    given = open_encoder(base.spec.checkpoint, device="cpu", dtype="float32", adapter=str(adapter))
    assert given.spec == adapted.spec


def test_merged_equals_adapted_and_untouched_tensors_keep_their_bytes(
    tmp_path: Path, adapter: Path, blip: Path
) -> None:
    out = merge_adapters([adapter], tmp_path / "merged")
    merged = open_encoder(str(out), device="cpu", dtype="float32")
    adapted = open_encoder(str(adapter), device="cpu", dtype="float32")
    np.testing.assert_allclose(vectors(merged), vectors(adapted), atol=SAME)
    before, after = load_file(blip / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(json.loads((out / "merged.json").read_text())["tensors"])
    assert changed == {name for name in before if name.endswith((".query.weight", ".value.weight"))}
    with pytest.raises(VlreError, match="not empty"):
        merge_adapters([adapter], out)


def test_two_adapters_add_up(tmp_path: Path, adapter: Path, store: Path, base: Encoder) -> None:
    train(Task.RETRIEVAL, store, tmp_path / "two", seed=5, adapter_name="other")
    other = tmp_path / "two" / "other"
    assert (other / "adapter_config.json").is_file()
    merged = merge_adapters([adapter, other], tmp_path / "merged")
    weights = [
        load_file(path / "model.safetensors") for path in (Path(base.spec.checkpoint), merged)
    ]
    name = "text_encoder.encoder.layer.0.attention.self.query"
    total = weights[0][f"{name}.weight"].clone()
    for path in (adapter, other):
        parts = load_file(path / "adapter_model.safetensors")
        a, b = (parts[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        total += b @ a * (8 / 4)
    torch.testing.assert_close(weights[1][f"{name}.weight"], total, atol=1e-6, rtol=1e-5)


def test_another_base_is_refused_with_both_named(tmp_path: Path, adapter: Path) -> None:
    other = tiny.save_blip(tmp_path / "other", seed=9)
    with pytest.raises(FingerprintMismatch, match="was made under encoder"):
        open_encoder(str(other), adapter=str(adapter))
    with pytest.raises(FingerprintMismatch):
        merge_adapters([adapter], tmp_path / "merged", base=str(other))


def test_a_store_made_without_the_adapter_is_refused_and_brought_up_to_date_without_pictures(
    tmp_path: Path, adapter: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    adapted = open_encoder(str(adapter), device="cpu", dtype="float32")
    with pytest.raises(FingerprintMismatch):
        open_store(copy).check_fingerprint("the adapted model", adapted.spec.fingerprint)
    before = open_store(copy).gallery()
    images = before.images("itc")

    def unread(uri: str) -> bytes:
        raise AssertionError(f"{uri} was read")

    monkeypatch.setattr("retrieval_engine.encoding.stale.read_bytes", unread)
    report = encode_stale(copy, adapted)
    assert (report.images.encoded, report.images.reused) == (0, 24)
    assert report.captions.encoded > 50
    after = open_store(copy)
    assert after.fingerprint == adapted.spec.fingerprint
    np.testing.assert_array_equal(after.gallery().images("itc"), images)
    fresh = adapted.encode_texts(list(after.gallery().caption_texts), ["itc"])["itc"]
    np.testing.assert_allclose(after.gallery().captions("itc"), fresh, atol=SAME)
    assert after.verify() == []
    again = encode_stale(copy, adapted)
    assert (again.images.encoded, again.captions.encoded) == (0, 0)


@pytest.mark.whole
@pytest.mark.parametrize("spec", ["r=2", "r=2,dora", "r=2,rslora,dropout=0.1"])
def test_captions_learn_through_every_kind(
    tmp_path: Path, store: Path, captioner: Path, spec: str
) -> None:
    out = tmp_path / "out"
    report = train(Task.CAPTION, store, out, model=str(captioner), lora=spec, max_steps=6)
    assert report.final["caption_loss"] < report.start["caption_loss"]
    adapted = open_captioner(str(out), device="cpu", dtype="float32")
    plain = open_captioner(str(captioner), device="cpu", dtype="float32")
    assert adapted.spec.weights["vision"] == plain.spec.weights["vision"]
    assert adapted.spec.weights["text"] != plain.spec.weights["text"]
    tokens = torch.from_numpy(open_store(store).gallery().images("tokens")[:2])
    with torch.inference_mode():
        first, _ = adapted.begin(tokens, adapted.prompt)
        merged = open_captioner(str(merge_adapters([out], tmp_path / "m")), dtype="float32")
        second, _ = merged.begin(tokens, merged.prompt)
    torch.testing.assert_close(first, second, atol=SAME, rtol=0)


def copy_tower(source: Path, target: Path) -> None:
    model = BlipForConditionalGeneration.from_pretrained(target)
    weights = load_file(source / "model.safetensors")
    tower = {name: value for name, value in weights.items() if name.startswith("vision_model.")}
    model.load_state_dict(tower, strict=False)
    model.save_pretrained(target)


@pytest.mark.whole
@pytest.mark.parametrize("family", ["qformer", "opt", "t5"])
def test_blip2_learns_through_adapters(tmp_path: Path, family: str) -> None:
    save = {
        "qformer": tiny_blip2.save_blip2,
        "opt": tiny_blip2.save_blip2_opt,
        "t5": tiny_blip2.save_blip2_t5,
    }[family]
    model = save(tmp_path / "model")
    made = scenes_store(tmp_path / "store", model, scenes="scenes:12?seed=3")
    before = hashes(model)
    task = Task.RETRIEVAL if family == "qformer" else Task.CAPTION
    train(task, made, tmp_path / "out", batch_size=4)
    assert hashes(model) == before
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(float(value.abs().max()) > 0 for value in tensors.values())
    merge_adapters([tmp_path / "out"], tmp_path / "merged")
    opener: Any = open_encoder if task is Task.RETRIEVAL else open_captioner
    opener(str(tmp_path / "merged"))


def test_itc_alone_leaves_no_dead_adapter(tmp_path: Path, store: Path) -> None:
    report = train(Task.RETRIEVAL, store, tmp_path / "itc", itm=False)
    assert report.trainable.parameters == 2 * 2 * 4 * (32 + 32), "self-attention of two layers"
    with pytest.raises(VlreError, match="8 of 16 adapter weights get no gradient"):
        train(Task.RETRIEVAL, store, tmp_path / "dead", itm=False, lora="r=4,targets=text")


def test_checkpointing_and_adapters_in_the_tower_run_together(tmp_path: Path, store: Path) -> None:
    given: dict[str, Json] = {"from_pixels": True, "lora": "r=2,targets=text+vision", "lr": 1e-3}
    plain = train(Task.RETRIEVAL, store, tmp_path / "plain", **given)
    saving = train(Task.RETRIEVAL, store, tmp_path / "saving", checkpointing=True, **given)
    assert saving.final == pytest.approx(plain.final, abs=1e-4)
    tensors = load_file(tmp_path / "saving" / "adapter_model.safetensors")
    tower = [v for n, v in tensors.items() if "vision_model" in n]
    assert len(tower) == 4
    assert all(float(value.abs().max()) > 0 for value in tower)


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_preset_of_targets_exists(tmp_path: Path, name: str) -> None:
    if name in ("opt", "t5"):
        save = tiny_blip2.save_blip2_opt if name == "opt" else tiny_blip2.save_blip2_t5
        model, task = save(tmp_path / "model"), Task.CAPTION
    elif name == "qformer":
        model, task = tiny_blip2.save_blip2(tmp_path / "model"), Task.RETRIEVAL
    else:
        model, task = tiny.save_blip(tmp_path / "model"), Task.RETRIEVAL
    learner = open_learner(resolve(str(model)), task, with_tower=True, dtype=torch.float32)
    assert matching_modules(learner.model, name)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("r=0", "r is at least 1"),
        ("r=many", "'many' is no number"),
        ("rank=8", "known: r=, alpha="),
        ("dropout=1", "dropout in"),
    ],
)
def test_an_option_that_cannot_be_is_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        LoraOptions.parse(text)


def test_a_target_that_matches_nothing_names_those_that_do(tmp_path: Path, store: Path) -> None:
    with pytest.raises(UsageError, match=r"'o_proj' matches no linear layer.*presets.*text"):
        train(Task.RETRIEVAL, store, tmp_path / "a", lora="targets=o_proj")
    with pytest.raises(UsageError, match="'vision' matches") as caught:
        train(Task.RETRIEVAL, store, tmp_path / "b", lora="targets=vision")
    assert "`from_pixels`" in caught.value.hint


@pytest.mark.parametrize("targets", ["qformer", "qformer+opt"])
def test_an_adapter_of_a_language_model_s_q_former_merges(tmp_path: Path, targets: str) -> None:
    model = tiny_blip2.save_blip2_opt(tmp_path / "model")
    made = scenes_store(tmp_path / "store", model, scenes="scenes:12?seed=3")
    given: dict[str, Json] = {"batch_size": 4, "lora": f"r=2,targets={targets}"}
    train(Task.CAPTION, made, tmp_path / "out", **given)
    merged = merge_adapters([tmp_path / "out"], tmp_path / "merged")
    tokens = torch.from_numpy(open_store(made).gallery().images("tokens")[:3])
    assert_same_words(tokens, tmp_path / "out", merged, model)


def test_an_adapter_of_a_captioner_s_tower_merges(tmp_path: Path, store: Path) -> None:
    model = tiny.save_blip_captioner(tmp_path / "model")
    given: dict[str, Json] = {"from_pixels": True, "model": str(model), "lr": 1e-1}
    train(Task.CAPTION, store, tmp_path / "out", lora="r=2,targets=vision", **given)
    merged = merge_adapters([tmp_path / "out"], tmp_path / "merged")
    pixels = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    seen = [
        open_captioner(str(path), device="cpu", dtype="float32").encode_images(pixels, ["tokens"])
        for path in (tmp_path / "out", merged, model)
    ]
    np.testing.assert_allclose(seen[0]["tokens"], seen[1]["tokens"], atol=SAME)
    assert np.abs(seen[0]["tokens"] - seen[2]["tokens"]).max() > 1e-3


def assert_same_words(tokens: torch.Tensor, adapter: Path, merged: Path, base: Path) -> None:
    found = []
    for path in (adapter, merged, base):
        captioner = open_captioner(str(path), device="cpu", dtype="float32")
        with torch.inference_mode():
            found.append(captioner.begin(tokens, captioner.prompt)[0])
    torch.testing.assert_close(found[0], found[1], atol=SAME, rtol=0)
    assert float((found[0] - found[2]).abs().max()) > 1e-3


def test_caption_takes_a_base_and_its_adapter(tmp_path: Path, store: Path, captioner: Path) -> None:
    model = captioner
    train(Task.CAPTION, store, tmp_path / "out", model=str(model), lr=2e-1, max_steps=5)

    def words(*more: str) -> str:
        command = ["caption", "--store", str(store), "--limit", "2", "--beams", "1", "--prompt", ""]
        result = CliRunner().invoke(main, [*command, "--dtype", "float32", *more])
        assert result.exit_code == 0, result.output
        return result.stdout

    adapted = words("--model", str(model), "--adapter", str(tmp_path / "out"))
    assert adapted == words("--model", str(tmp_path / "out"))
    assert adapted != words("--model", str(model))
    other = tiny.save_blip_captioner(tmp_path / "other", seed=9)
    with pytest.raises(FingerprintMismatch):
        open_captioner(str(other), adapter=tmp_path / "out")
