"""What is said where a checkpoint cannot be used, and wrappers that come off on import."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from retrieval_engine import open_encoder
from retrieval_engine.cli import main
from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.models.learner import open_learner
from retrieval_engine.train.finetune import Task, configure, finetune
from tests import tiny, tiny_blip2
from tests.authors_files import bring_in, refused, tensors_of
from tests.finetune_stores import scenes_store


@pytest.mark.parametrize("kind", ["retrieval", "captioner", "opt"])
def test_a_vocabulary_that_is_one_off_names_the_tensor_and_both_sizes(
    tmp_path: Path, kind: str
) -> None:
    save: Any = {
        "retrieval": tiny.save_blip,
        "captioner": tiny.save_blip_captioner,
        "opt": tiny_blip2.save_blip2_opt,
    }[kind]
    model = save(tmp_path)
    config = json.loads((model / "config.json").read_text())
    rows = config["text_config"]["vocab_size"]
    config["text_config"]["vocab_size"] = rows + 1
    (model / "config.json").write_text(json.dumps(config))
    opener: Any = open_encoder if kind == "retrieval" else open_captioner
    with pytest.raises(CheckpointInvalid) as caught:
        assert opener(str(model)).speaking
    assert "embed" in caught.value.message
    assert f"is [{rows}, " in caught.value.message
    assert f"and [{rows + 1}, " in caught.value.message
    assert "report" not in caught.value.message
    assert "vocab_size" in caught.value.hint


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("kind", ["retrieval", "captioner"])
def test_weights_saved_in_a_wrapper_say_so(tmp_path: Path, prefix: str, kind: str) -> None:
    retrieval = kind == "retrieval"
    model = (tiny.save_blip if retrieval else tiny.save_blip_captioner)(tmp_path)
    file = model / "model.safetensors"
    save_file({prefix + name: value for name, value in load_file(file).items()}, file)
    opener: Any = open_encoder if retrieval else open_captioner
    with pytest.raises(CheckpointInvalid) as caught:
        opener(str(model))
    assert f"begin with {prefix!r}" in caught.value.message
    assert "model.module" in caught.value.hint


def test_what_is_missing_is_told_with_what_is_there(tmp_path: Path) -> None:
    model = tiny.save_blip_captioner(tmp_path)
    with pytest.raises(CheckpointInvalid, match=r"lacks \d+ parameters of BlipForImage") as caught:
        open_encoder(str(model))
    assert "its weights hold text_decoder, vision_model" in caught.value.hint


def test_a_blip2_without_architectures_says_where_they_are_missing(tmp_path: Path) -> None:
    model = tiny_blip2.save_blip2(tmp_path)
    config = json.loads((model / "config.json").read_text()) | {"architectures": None}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointInvalid, match=r"`architectures` in config\.json has no class"):
        open_captioner(str(model))


WRAPPED: dict[str, Any] = {
    "module.": lambda t: {"model": {"module." + k: v for k, v in t.items()}},
    "_orig_mod.": lambda t: {"model": {"_orig_mod." + k: v for k, v in t.items()}},
    "module._orig_mod.": lambda t: {"module._orig_mod." + k: v for k, v in t.items()},
    "model.": lambda t: {"state_dict": {"model." + k: v for k, v in t.items()}, "epoch": 3},
    "model_state_dict": lambda t: {"model_state_dict": t, "epoch": 3, "loss": 1.5},
    "options": lambda t: {"model": t, "args": argparse.Namespace(lr=1e-5), "optimizer": {}},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_an_import_takes_every_wrapper_off(tmp_path: Path, wrapper: str) -> None:
    tensors = tensors_of("blip/retrieval")
    torch.save({"model": tensors}, tmp_path / "plain.pth")
    torch.save(WRAPPED[wrapper](tensors), tmp_path / "wrapped.pth")
    plain = bring_in(tmp_path / "plain.pth", tmp_path / "a")
    found = bring_in(tmp_path / "wrapped.pth", tmp_path / "b")
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_a_file_in_hugging_face_s_names_says_what_to_do_with_it(tmp_path: Path) -> None:
    model = tiny.save_blip(tmp_path / "model")
    file = tmp_path / "weights_best.pt"
    torch.save(load_file(model / "model.safetensors"), file)
    refused(file, tmp_path, r"which model it was trained from, `base=ID`")


@pytest.mark.parametrize("kind", ["retrieval", "captioner", "blip2", "opt", "t5"])
def test_a_tokenizer_larger_than_the_embeddings_names_both_sizes(tmp_path: Path, kind: str) -> None:
    save: Any = {
        "retrieval": tiny.save_blip,
        "captioner": tiny.save_blip_captioner,
        "blip2": tiny_blip2.save_blip2,
        "opt": tiny_blip2.save_blip2_opt,
        "t5": tiny_blip2.save_blip2_t5,
    }[kind]
    model = save(tmp_path / "m")
    large = tiny.tokenizer()
    large.add_tokens([f"word{i}" for i in range(9)])
    large.save_pretrained(model)
    rows = len(tiny.VOCABULARY) + (2 if kind in ("retrieval", "captioner") else 1)
    message = f"tokenizer has ids up to {max(large.get_vocab().values())}"
    openers: list[Any] = [open_captioner] if kind in ("captioner", "opt", "t5") else [open_encoder]
    openers += [open_encoder] if kind in ("opt", "t5") else []
    for opener in openers:
        with pytest.raises(CheckpointInvalid, match=f"{message} .*its word embeddings {rows} rows"):
            opener(str(model), device="cpu")
    task = Task.RETRIEVAL if kind in ("retrieval", "blip2") else Task.CAPTION
    with pytest.raises(CheckpointInvalid, match=message):
        open_learner(resolve(str(model)), task, with_tower=False, dtype=torch.float32)


def test_a_prompt_that_nobody_said_is_told_and_a_trained_one_is_written_down(
    tmp_path: Path,
) -> None:
    model = tiny.save_blip_captioner(tmp_path / "model")
    words = ["caption", "scenes:1?seed=3", "--store", "none", "--beams", "1", "--model"]
    told = "does not say what prompt it was trained with: its authors' is taken, 'a picture of '"
    result = CliRunner().invoke(main, [*words, str(model)])
    assert result.exit_code == 0, result.output
    assert told in result.stderr
    assert "--prompt ''" in result.stderr
    assert told not in CliRunner().invoke(main, [*words, str(model), "--prompt", ""]).stderr
    store = scenes_store(tmp_path / "store", tiny.save_blip(tmp_path / "blip"), scenes="scenes:12")
    given = {"from_pixels": True, "augment": False, "max_steps": 1, "batch_size": 4}
    config = configure(Task.CAPTION, store=str(store), model=str(model), device="cpu", **given)
    finetune(config, tmp_path / "tuned")
    assert open_captioner(str(tmp_path / "tuned")).says_prompt
    assert told not in CliRunner().invoke(main, [*words, str(tmp_path / "tuned")]).stderr
