"""`vlre finetune` end to end on tiny real models: it learns, goes on, and refuses in one line."""

import hashlib
import json
import math
import re
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from benchmarks import finetune as benchmark
from retrieval_engine import open_encoder, open_store
from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.encoding.stale import encode_stale
from retrieval_engine.errors import FingerprintMismatch, TrainingError
from retrieval_engine.evaluate.leaks import find_leaks, known_training_records
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.records import Caption, Item, Json, Modality
from retrieval_engine.store import StoreWriter
from retrieval_engine.testing.images import jpeg
from retrieval_engine.train.finetune import PRESETS, Task, configure, finetune
from retrieval_engine.train.finetune import trainer as trainer_module
from retrieval_engine.train.finetune.captioned import Order, load_sets
from tests import tiny
from tests.children import held_at, in_child, vlre
from tests.finetune_stores import scenes_store
from tests.test_adapters import copy_tower


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture(scope="module")
def blip(root: Path) -> Path:
    return tiny.save_blip(root / "blip")


@pytest.fixture(scope="module")
def store(root: Path, blip: Path) -> Path:
    return scenes_store(root / "store", blip, scenes="scenes:48?seed=7")


@pytest.fixture(scope="module")
def captioner(root: Path, blip: Path) -> Path:
    made = tiny.save_blip_captioner(root / "captioner")
    copy_tower(blip, made)
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["finetune", *arguments])


def settings(store: Path, **given: Json) -> dict[str, Json]:
    values: dict[str, Json] = {"store": str(store), "batch_size": 16, "device": "cpu"}
    return {**values, "dtype": "float32", **given}


def test_retrieval_from_the_cache_learns_and_touches_nothing_it_should_not(
    tmp_path: Path, store: Path, blip: Path
) -> None:
    out = tmp_path / "r"
    result = run(
        *("retrieval", "--from-cache", "--store", str(store), "--out", str(out), "--json"),
        *("--batch-size", "16", "--max-steps", "15", "--lr", "1e-2", "--eval-every", "5"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {"out", "steps", "seconds", "start", "final", "trainable", "fingerprint"} <= set(report)
    assert report["steps"] == 15
    assert "held out by a hash of their ids" in result.stderr
    assert re.search(r"training [\d,]+ of [\d,]+ weights \([\d.]+ %\)", result.stderr)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line["itc"] for line in lines if "itc" in line]
    assert losses[-1] < losses[0]
    before, after = load_file(blip / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = value.numpy().tobytes() == after[name].numpy().tobytes()
        assert same == name.startswith("vision_model."), name
    opened = open_encoder(str(out))
    assert opened.spec.fingerprint == report["fingerprint"]
    assert opened.spec.part("vision") == open_encoder(str(blip)).spec.part("vision")
    BlipForImageTextRetrieval.from_pretrained(out)
    assert (out / "curves.png").stat().st_size > 5_000
    assert not (out / "run").exists()


def test_captions_from_the_cache_learn_and_are_written_with_the_prompt_they_learned(
    tmp_path: Path, store: Path, captioner: Path
) -> None:
    out = tmp_path / "c"
    result = run(
        *("caption", "--from-cache", "--store", str(store), "--out", str(out), "--json"),
        *("--model", str(captioner), "--batch-size", "16", "--max-steps", "20"),
        *("--captions-per-image", "2", "--lr", "2e-2", "--select", "cider"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["final"]["caption_loss"] < 0.8 * report["start"]["caption_loss"]
    assert report["final"]["cider"] >= 0
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert samples
    assert samples[-1].pop("step") == 20
    assert samples[-1]
    assert all(isinstance(text, str) for text in samples[-1].values())
    opened = open_captioner(str(out), device="cpu", dtype="float32")
    assert opened.spec.part("vision") == open_store(store).spec.part("vision")
    BlipForConditionalGeneration.from_pretrained(out)
    for name, value in load_file(captioner / "model.safetensors").items():
        if name.startswith("vision_model."):
            assert torch.equal(value, load_file(out / "model.safetensors")[name])


def test_a_captioning_checkpoint_makes_the_store_that_trains_it(tmp_path: Path) -> None:
    model = tiny.save_blip_captioner(tmp_path / "captioner")
    store, out = str(tmp_path / "store"), str(tmp_path / "c")
    command = ["encode", "scenes:12?seed=3", "--model", str(model), "--features", "tokens"]
    encoded = CliRunner().invoke(main, [*command, "--store", store])
    assert encoded.exit_code == 0, encoded.output
    result = run("caption", "--store", store, "--out", out, "--max-steps", "2", "--batch-size", "4")
    assert result.exit_code == 0, result.output
    open_captioner(out)


def test_from_pixels_trains_the_tower_and_what_is_stale_is_encoded_again(
    tmp_path: Path, store: Path
) -> None:
    out = tmp_path / "p"
    finetune(configure(Task.RETRIEVAL, **settings(store, from_pixels=True, max_steps=2)), out)
    trained = open_encoder(str(out), device="cpu", dtype="float32")
    assert trained.spec.weights["vision"] != open_store(store).spec.weights["vision"]
    with pytest.raises(FingerprintMismatch, match="vision states"):
        finetune(configure(Task.RETRIEVAL, **settings(store, model=str(out))), tmp_path / "no")
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    report = encode_stale(copy, trained)
    assert report.images.encoded == 48
    gallery = open_store(copy).gallery()
    from retrieval_engine.sources import read_bytes
    from retrieval_engine.sources.decode import decode

    pixels = trained.preprocessor.pixels(decode(read_bytes(gallery.uris[0])))
    fresh = trained.encode_images(pixels[None], ["itc", "tokens"])
    np.testing.assert_allclose(gallery.images("itc")[:1], fresh["itc"], atol=1e-5)
    np.testing.assert_allclose(gallery.images("tokens")[:1], fresh["tokens"], atol=1e-4)


def test_a_picture_that_is_gone_is_in_the_ledger_until_it_is_back(
    tmp_path: Path, blip: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(5):
        (pictures / f"{number}.jpg").write_bytes(jpeg(number))
    shutil.copy(pictures / "3.jpg", pictures / "3-again.jpg")
    path, options = tmp_path / "s", EncodeOptions(features=("itc",))
    first, other = (
        open_encoder(str(checkpoint), device="cpu", dtype="float32")
        for checkpoint in (blip, tiny.save_blip(tmp_path / "m", seed=5))
    )
    encode(f"folder:{pictures}", path, encoder=first, options=options)
    (pictures / "3.jpg").rename(tmp_path / "away.jpg")
    (pictures / "3-again.jpg").unlink()
    report = encode_stale(path, other, batch_size=2)
    assert (report.images.encoded, report.images.failed) == (4, 1)
    assert [f.item_id for f in open_store(path).failures()] == ["3-again.jpg", "3.jpg"]
    assert open_store(path).gallery().left_out == 2
    for name in ("3.jpg", "3-again.jpg"):
        shutil.copy(tmp_path / "away.jpg", pictures / name)
    report = encode_stale(path, other)
    assert (report.images.encoded, report.images.reused, report.images.failed) == (1, 4, 0)
    assert open_store(path).failures() == []
    assert open_store(path).gallery().left_out == 0


def test_after_training_from_the_cache_image_vectors_come_from_stored_states(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    finetune(configure(Task.RETRIEVAL, **settings(store, max_steps=2, lr=1e-2)), out)
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    tokens = open_store(copy).gallery().images("tokens")
    monkeypatch.setattr("retrieval_engine.encoding.stale.read_bytes", lambda uri: 1 / 0)
    trained = open_encoder(str(out), device="cpu", dtype="float32")
    report = encode_stale(copy, trained)
    assert (report.images.encoded, report.images.failed) == (48, 0)
    gallery = open_store(copy).gallery()
    states = torch.from_numpy(gallery.images("tokens"))
    np.testing.assert_array_equal(states, tokens)
    model: Any = BlipForImageTextRetrieval.from_pretrained(out)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model.vision_proj(states[:, 0]), dim=-1)
    np.testing.assert_allclose(gallery.images("itc")[:, 0], expected, atol=1e-5)
    command = ["encode", "--only-stale", "--store", str(copy), "--model", str(out), "--json"]
    result = CliRunner().invoke(main, [*command, "--device", "cpu", "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == {"encoded": 0, "reused": 48, "failed": 0}
    both = CliRunner().invoke(main, [*command, "scenes:3"])
    assert both.exit_code == 2


def test_a_run_stopped_and_taken_up_again_equals_one_that_was_not(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(Task.RETRIEVAL, **settings(store, max_steps=5, eval_every=2, micro_batch=6))
    whole = finetune(config, tmp_path / "whole")
    steps: list[int] = []
    plain = trainer_module.FinetuneRun._step

    def dies(self: trainer_module.FinetuneRun) -> None:
        if self.state.step == 3 and not steps:
            steps.append(3)
            raise KeyboardInterrupt
        plain(self)

    monkeypatch.setattr(trainer_module.FinetuneRun, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, tmp_path / "parts")
    assert (tmp_path / "parts" / "run" / "checkpoint.pt").exists()
    parts = finetune(config, tmp_path / "parts")
    assert parts.final == whole.final
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")
    with pytest.raises(TrainingError, match="already holds"):
        finetune(config, tmp_path / "whole")


def hashes(directory: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in directory.glob("*.safetensors")
    }


def test_killed_in_mid_training_the_same_command_goes_on(
    tmp_path: Path, store: Path, captioner: Path
) -> None:
    def arguments(out: Path) -> list[str]:
        given = ["caption", "--store", str(store), "--out", str(out), "--model", str(captioner)]
        given += ["--batch-size", "8", "--max-steps", "6", "--eval-every", "2", "--json"]
        return [*given, "--lora", "r=4,dropout=0.1", "--device", "cpu", "--dtype", "float32"]

    checkpoint = tmp_path / "killed" / "run" / "checkpoint.pt"
    training = held_at("training.json", vlre("finetune", *arguments(tmp_path / "killed")))
    ended = in_child(training, kill_when=checkpoint.exists)
    assert ended.code == -signal.SIGKILL, ended.output
    assert not (tmp_path / "killed" / "training.json").exists()
    resumed, whole = (run(*arguments(tmp_path / name)) for name in ("killed", "whole"))
    assert resumed.exit_code == whole.exit_code == 0, resumed.output + whole.output
    assert "going on from step" in resumed.stderr
    one, other = json.loads(resumed.stdout), json.loads(whole.stdout)
    assert one["final"] == pytest.approx(other["final"], rel=1e-4)
    assert one["fingerprint"] == other["fingerprint"]


def test_a_loss_that_is_not_finite_stops_with_the_batch(tmp_path: Path, store: Path) -> None:
    out = tmp_path / "r"
    with pytest.raises(
        TrainingError, match=r"not finite at step \d+ .*the batch is scene-7"
    ) as caught:
        finetune(configure(Task.RETRIEVAL, **settings(store, lr=1e30, clip=1e30)), out)
    assert "lower `lr`" in caught.value.hint
    assert not (out / "training.json").exists()


def test_the_record_lets_evaluation_find_the_leak(tmp_path: Path, store: Path, blip: Path) -> None:
    out = tmp_path / "r"
    finetune(configure(Task.RETRIEVAL, **settings(store, max_steps=1)), out)
    record = json.loads((out / "training.json").read_text())
    sets = load_sets(open_store(store), from_cache=True)
    assert record["ids"] == sorted(sets.train.ids)
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    encode_stale(copy, open_encoder(str(out), device="cpu", dtype="float32"))
    gallery = open_store(copy).gallery()
    known, unknown = known_training_records(gallery)
    assert not unknown
    report = find_leaks(gallery, known)
    assert report.shared_ids == len(sets.train)
    assert report.shared_contents == len(sets.train)


def test_kept_models_and_the_last_are_whole(tmp_path: Path, store: Path) -> None:
    out = tmp_path / "r"
    given = settings(store, epochs=2, keep_every=1, lora="r=2", lr=0.5, batch_size=45)
    report = finetune(configure(Task.RETRIEVAL, **given), out)
    assert {p.name for p in out.glob("epoch-*")} == {"epoch-1", "epoch-2"}
    assert open_encoder(str(out / "epoch-1")).spec.adapter
    assert (out / "last").exists() == (report.best_step != report.steps)


def test_every_kept_captioner_says_its_prompt_whenever_it_was_validated(
    tmp_path: Path, store: Path, captioner: Path
) -> None:
    out = tmp_path / "c"
    given = settings(store, model=str(captioner), epochs=2, keep_every=1, eval_every=1000, lr=0.5)
    given |= {"batch_size": 80, "select": "bleu4"}
    report = finetune(configure(Task.CAPTION, **given), out)
    kept = [out / "epoch-1", out / "epoch-2", *out.glob("last")]
    for folder in (*kept, out):
        said = json.loads((folder / "generation_config.json").read_text())
        assert said["prompt"] == open_captioner(str(folder), device="cpu").prompt == "a picture of "
    assert 0 <= report.final["bleu4"] <= 1


def split_store(path: Path, blip: Path, splits: list[str]) -> Path:
    source = scenes_store(path / "all", blip, scenes=f"scenes:{len(splits)}?seed=5")
    opened = open_store(source)
    table = opened.items().to_pylist()
    with StoreWriter.open(
        source,
        spec=opened.spec,
        features={m: list(opened.features(m).values()) for m in Modality},
    ) as writer:
        part = writer.part()
        for row, split in zip(table, splits, strict=True):
            captions = tuple(Caption(id=c["id"], text=c["text"]) for c in row["captions"])
            item = Item(id=row["id"], uri=row["uri"], captions=captions, split=split)
            part.add_items(row["source"], [(item, row["key"])])
        part.commit()
    return source


def test_splits_are_taken_at_their_word_and_test_is_never_touched(
    tmp_path: Path, blip: Path
) -> None:
    splits = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    store = open_store(split_store(tmp_path, blip, splits))
    sets = load_sets(store, from_cache=True)
    ids = store.items()["id"].to_pylist()
    assert list(sets.train.ids) == ids[:6]
    assert list(sets.val.ids) == ids[6:9]
    only = open_store(split_store(tmp_path / "b", blip, ["train"] * 6 + ["test"] * 6))
    held = load_sets(only, from_cache=True)
    assert set(held.train.ids) | set(held.val.ids) == set(only.items()["id"].to_pylist()[:6])
    assert len(held.val) >= 1


def test_holding_out_follows_ids_not_positions(blip: Path, tmp_path: Path, store: Path) -> None:
    small = load_sets(open_store(scenes_store(tmp_path / "s", blip)), from_cache=True)
    large = load_sets(open_store(store), from_cache=True)
    both = set(small.train.ids) & set(large.val.ids)
    assert not both, "more images move none across"
    assert not set(large.train.keys) & set(large.val.keys)


def test_an_epoch_takes_each_caption_once_and_pads_what_is_short(store: Path) -> None:
    data = load_sets(open_store(store), from_cache=True).train
    for per_image in (1, 2, 5):
        order = Order(data, batch_size=10, per_image=per_image, seed=1)
        groups = [order(step) for step in range(order.steps_per_epoch)]
        seen = np.concatenate([g.captions.ravel() for g in groups])
        seen = seen[seen >= 0]
        assert len(set(seen.tolist())) == len(seen)
        assert len(data.texts) - len(seen) < 10 + per_image
        for group in groups:
            owner = data.owner[np.where(group.captions < 0, 0, group.captions)]
            own = (owner == group.images[:, None]) | (group.captions < 0)
            assert own.all()
    again = Order(data, batch_size=10, per_image=1, seed=1)
    np.testing.assert_array_equal(
        again(3).captions, Order(data, batch_size=10, per_image=1, seed=1)(3).captions
    )


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_complete_and_say_what_differs(name: str) -> None:
    preset = PRESETS[name]
    config = configure(preset.task, preset=name, store="s", epochs=3)
    assert config.epochs == 3, "what is given goes before the preset"
    assert config.batch_size == preset.values["batch_size"]
    assert preset.source
    assert preset.differs


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--preset", "flickr9k"], 2, "no preset 'flickr9k' for retrieval; known: flickr, coco"),
        (["--batch-size", "5000"], 2, "a batch of 5000 captions is larger than the data"),
        (["--batch-size", "1"], 2, "at least two in a batch"),
        (["--lora", "targets=o_proj"], 2, "'o_proj' matches no linear layer"),
        (["--lora", "r=0"], 2, "r is at least 1"),
        (["--quantize", "4bit"], 2, "4bit weights cannot be trained"),
        pytest.param(
            ["--quantize", "8bit", "--lora", "r=2"],
            1,
            "bitsandbytes is not installed",
            marks=pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="it is"),
        ),
        pytest.param(
            ["--tracker", "mlflow"],
            1,
            "mlflow is not installed",
            marks=pytest.mark.skipif(find_spec("mlflow") is not None, reason="it is"),
        ),
        (["--freeze-vision"], 2, "--freeze-vision and --checkpointing need --from-pixels"),
        (["--model", "no-such"], 1, "no checkpoint 'no-such'"),
        (["--epochs", "0"], 2, "epochs is 0, must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, store: Path, arguments: list[str], code: int, line: str
) -> None:
    out = tmp_path / "out"
    result = run("retrieval", "--store", str(store), "--out", str(out), *arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert line in result.stderr
    assert "Traceback" not in result.stderr
    assert not (out / "training.json").exists()


def test_a_store_without_tokens_or_captions_or_decoder_is_refused(
    tmp_path: Path, blip: Path, store: Path
) -> None:
    encoder = open_encoder(str(blip), device="cpu", dtype="float32")
    encode("scenes:5?seed=1", tmp_path / "plain", encoder=encoder)
    refused = run("retrieval", "--store", str(tmp_path / "plain"), "--out", str(tmp_path / "a"))
    assert refused.exit_code == 1
    assert "has no tokens" in refused.stderr
    assert "--features itc,pooled,tokens" in refused.stderr
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (i, 80 * i, 9)).save(pictures / f"{i}.png")
    options = EncodeOptions(features=("itc", "tokens"))
    encode(f"folder:{pictures}", tmp_path / "mute", encoder=encoder, options=options)
    mute = run("retrieval", "--store", str(tmp_path / "mute"), "--out", str(tmp_path / "b"))
    assert mute.exit_code == 1
    assert "0 images with captions to train on" in mute.stderr
    no_decoder = run("caption", "--store", str(store), "--out", str(tmp_path / "c"))
    assert no_decoder.exit_code == 1
    assert "lacks" in no_decoder.stderr


def test_an_option_of_another_run_is_not_taken_up(tmp_path: Path, store: Path) -> None:
    out = tmp_path / "out"
    (out / "run").mkdir(parents=True)
    torch.save({"identity": "another"}, out / "run" / "checkpoint.pt")
    with pytest.raises(TrainingError, match="other options"):
        finetune(configure(Task.RETRIEVAL, **settings(store, max_steps=1)), out)


def test_python_selects_by_cider_too(tmp_path: Path, store: Path, captioner: Path) -> None:
    given: dict[str, Json] = {
        "model": str(captioner),
        "max_steps": 6,
        "eval_every": 2,
        "lr": 2e-2,
    }
    config = configure(Task.CAPTION, **settings(store, select="cider", **given))
    report = finetune(config, tmp_path / "out")
    log = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, log) if "cider" in line]
    best = max(line["cider"] for line in lines)
    [kept] = [line for line in lines if line["step"] == report.best_step]
    assert report.final["cider"] == pytest.approx(best, abs=1e-4)
    assert kept["cider"] == best


def test_the_default_step_grows_for_small_models_and_adapters(tmp_path: Path, store: Path) -> None:
    from retrieval_engine.progress import Silent

    peaks = []
    for name, lora in (("full", ""), ("lora", "r=2")):
        config = configure(Task.RETRIEVAL, **settings(store, lora=lora))
        made = trainer_module.FinetuneRun(config, tmp_path / name, Silent())
        peaks.append(made.peak)
        made.close()
    assert peaks == pytest.approx([1e-5 * (768 / 32) ** 2, 1e-4 * (768 / 32) ** 2])
    assert all(math.isfinite(peak) for peak in peaks)


@pytest.mark.whole
@pytest.mark.parametrize("what", ["caption5", "retrieval", "blip2"])
def test_the_benchmark_runs_and_both_ways_have_the_same_losses(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune", "--tiny", "--what", what, "--steps", "1"])
    benchmark.main()
    found = json.loads(capsys.readouterr().out)
    assert {"speedup", "share_gone", "commit", "versions"} <= set(found)
    assert found["largest_loss_difference"] < 1e-5
