"""What decides numbers is in the fingerprint, or is refused: files beside the weights, and layouts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BlipForQuestionAnswering
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from retrieval_engine import open_encoder
from retrieval_engine.errors import CheckpointInvalid, VlreError
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.models.checkpoint import Checkpoint, weight_digests
from retrieval_engine.models.device import normalized_pixels
from retrieval_engine.models.learner import Task, open_learner
from retrieval_engine.models.preprocess import read_preprocessor
from retrieval_engine.models.text_tower import reopen_for_texts
from tests import tiny, tiny_blip2

SAVE: dict[str, Any] = {
    "retrieval": tiny.save_blip,
    "captioner": tiny.save_blip_captioner,
    "qformer": tiny_blip2.save_blip2,
    "opt": tiny_blip2.save_blip2_opt,
    "t5": tiny_blip2.save_blip2_t5,
}


def opened(kind: str, path: Path) -> Any:
    opener: Any = open_captioner if kind in ("captioner", "opt", "t5") else open_encoder
    return opener(str(path), device="cpu", dtype="float32")


def change(file: Path, **values: object) -> None:
    said = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(said | values))


@pytest.mark.parametrize("kind", SAVE)
def test_equal_weights_have_one_fingerprint_pickled_or_not(tmp_path: Path, kind: str) -> None:
    first = SAVE[kind](tmp_path / "a")
    second = Path(shutil.copytree(first, tmp_path / "b"))
    tensors = load_file(second / "model.safetensors")
    if kind == "captioner":  # as `torch.save(model.state_dict())` has it, tied names included
        bert = "text_decoder.bert.embeddings.word_embeddings.weight"
        tensors["text_decoder.cls.predictions.decoder.weight"] = tensors[bert]
        head = "text_decoder.cls.predictions"
        tensors[f"{head}.decoder.bias"] = tensors[f"{head}.bias"].clone()
    if kind == "opt":
        words = tensors["language_model.model.decoder.embed_tokens.weight"]
        tensors["language_model.lm_head.weight"] = words
    torch.save(tensors, second / "pytorch_model.bin")
    (second / "model.safetensors").unlink()
    one, other = opened(kind, first), opened(kind, second)
    assert one.spec.weights == other.spec.weights
    assert one.spec.fingerprint == other.spec.fingerprint
    last = sorted(name for name in tensors if name.startswith(("text_encoder", "qformer", "text")))
    tensors[last[-1]] = tensors[last[-1]] + 1
    torch.save(tensors, second / "pytorch_model.bin")
    assert opened(kind, second).spec.fingerprint != one.spec.fingerprint


def test_the_fingerprints_of_safetensors_are_those_they_were(tmp_path: Path) -> None:
    torch_file = tmp_path / "model.safetensors"
    header = {"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    head = json.dumps(header).encode()
    torch_file.write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
    found = weight_digests(tmp_path, lambda name: "all", {"all": [1]})
    assert found == {"all": "903fe9a891e3491bad3e1ab06efc318526e96a4154c0058561011ce85db2179a"}


def test_a_trainer_s_checkpoint_in_the_place_of_weights_is_refused(tmp_path: Path) -> None:
    model = tiny.save_blip(tmp_path)
    tensors = load_file(model / "model.safetensors")
    torch.save({"epoch": 3, "model_state_dict": tensors}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointInvalid, match="more than tensors by name: epoch, model_state"):
        open_encoder(str(model))


PIXELS: dict[str, dict[str, Any]] = {
    "no normalisation": {"do_normalize": False},
    "no scale": {"do_rescale": False},
    "another scale": {"rescale_factor": 1 / 127.5},
    "another scale, no normalisation": {"rescale_factor": 0.01, "do_normalize": False},
    "means of its own": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]},
}


@pytest.mark.parametrize("said", PIXELS)
def test_pixels_are_those_of_the_checkpoint_s_processor_and_named(
    tmp_path: Path, said: str
) -> None:
    change(tmp_path / "preprocessor_config.json", **PIXELS[said])
    ours = read_preprocessor(Checkpoint(name="here", path=tmp_path), 32)
    rng = np.random.default_rng(4)
    image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    pixels = normalized_pixels(ours.pixels(image)[None], ours, torch.device("cpu"))[0].numpy()
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32}, **PIXELS[said])
    theirs = np.asarray(processor(image)["pixel_values"][0])
    np.testing.assert_allclose(pixels, theirs, rtol=1e-4, atol=1e-4)
    (tmp_path / "preprocessor_config.json").unlink()
    assert ours.name != read_preprocessor(Checkpoint(name="here", path=tmp_path), 32).name


@pytest.mark.parametrize(
    "said",
    [
        {"resample": 2},
        {"do_resize": False},
        {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 32}},
        {"do_pad": True},
    ],
    ids=lambda said: next(iter(said)),
)
def test_pixels_that_are_made_in_another_way_are_refused_by_name(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    model = tiny.save_blip(tmp_path)
    change(model / "preprocessor_config.json", **said)
    name, value = next(iter(said.items()))
    with pytest.raises(CheckpointInvalid) as caught:
        open_encoder(str(model))
    assert f"{name}={value!r}" in caught.value.message


def test_the_files_of_the_hub_and_old_ones_are_as_before(tmp_path: Path) -> None:
    plain = read_preprocessor(Checkpoint(name="here", path=tmp_path), 32)
    for said in (
        {"size": 384, "feature_extractor_type": "BlipFeatureExtractor", "resample": 3},
        {"do_normalize": True, "do_rescale": True, "rescale_factor": 0.00392156862745098},
        {"size": {"height": 32, "width": 32}, "do_resize": True, "do_convert_rgb": True},
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
        assert read_preprocessor(Checkpoint(name="here", path=tmp_path), 32) == plain


LONG = "a red dog and a blue cat and a green bird and a black horse " * 3


@pytest.mark.parametrize(
    ("said", "moves"),
    [
        ({"truncation_side": "left"}, True),
        ({"padding_side": "left"}, False),
        ({"do_lower_case": False}, None),
    ],
)
def test_a_tokenizer_s_side_is_in_the_fingerprint_where_it_moves_vectors(
    tmp_path: Path, said: dict[str, Any], moves: bool | None
) -> None:
    first = tiny_blip2.save_blip2(tmp_path / "a")
    second = Path(shutil.copytree(first, tmp_path / "b"))
    change(second / "tokenizer_config.json", **said)
    one, other = (opened("qformer", path) for path in (first, second))
    vectors = [e.encode_texts([LONG], ["itc"])["itc"] for e in (one, other)]
    differ = bool(np.abs(vectors[0] - vectors[1]).max() > 1e-3)
    if moves is not None:
        assert differ == moves
        assert (one.spec.fingerprint != other.spec.fingerprint) == moves
    else:
        assert not differ or one.spec.fingerprint != other.spec.fingerprint


def test_the_text_tower_alone_says_the_same_of_a_side(tmp_path: Path) -> None:
    model = tiny.save_blip(tmp_path)
    change(model / "tokenizer_config.json", truncation_side="left")
    whole = opened("retrieval", model)
    texts = reopen_for_texts(whole.spec, device="cpu")
    assert texts.spec.fingerprint == whole.spec.fingerprint
    for feature in ("itc", "token_ids"):
        np.testing.assert_array_equal(
            texts.encode_texts([LONG], [feature])[feature],
            whole.encode_texts([LONG], [feature])[feature],
        )


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_the_end_token_is_generation_config_s(tmp_path: Path, kind: str) -> None:
    model = SAVE[kind](tmp_path)
    before = opened(kind, model)
    change(model / "generation_config.json", eos_token_id=[7])
    after = opened(kind, model)
    assert (before.end_id, after.end_id) == (3, 7)
    assert before.spec.fingerprint != after.spec.fingerprint
    learner: Any = open_learner(
        resolve(str(model)), Task.CAPTION, with_tower=False, dtype=torch.float32
    )
    assert learner.end_id == 7
    assert learner.encode(["a dog"])[0][0][-1] == 7
    change(model / "generation_config.json", eos_token_id=[7, 9])
    with pytest.raises(CheckpointInvalid, match=r"several end tokens, \[7, 9\]"):
        opened(kind, model)


def test_a_model_that_answers_questions_writes_and_learns_no_captions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BlipForQuestionAnswering(tiny.blip_config()).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    change(tmp_path / "config.json", architectures=["BlipForConditionalGeneration"])
    with pytest.raises(CheckpointInvalid, match="answers questions"):
        open_captioner(str(tmp_path))
    with pytest.raises(VlreError, match="answers questions"):
        open_learner(resolve(str(tmp_path)), Task.CAPTION, with_tower=False, dtype=torch.float32)
