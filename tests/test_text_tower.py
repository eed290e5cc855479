"""The text side alone against the whole encoder: bit by bit, by NumPy to 1e-5, or not at all."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.models.text_tower import (
    EncoderToCome,
    TextTowerFirst,
    open_when_needed,
    reopen_for_texts,
)
from retrieval_engine.records import Modality
from tests import tiny

TEXTS = [
    *("a dog on grass", "A red car, on the street at night.", "two birds", "a"),
    *("café — ÄÖ 北京 qwerty's [SEP] [MASK] x", "dog " * 60),
]
FEATURES = ["itc", "pooled", "token_ids", "token_mask"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blip(tmp_path_factory.mktemp("words"))


def whole(checkpoint: "Path | str", dtype: str = "float32") -> Encoder:
    return open_encoder(str(checkpoint), device="cpu", dtype=dtype)


def reopened(spec: EncoderSpec, model: "Path | str" = "") -> Encoder:
    return reopen_for_texts(spec, device="cpu", model=str(model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["vlre-tiny", "random"])
def test_vectors_are_equal_bit_by_bit(checkpoint: Path, name: str, dtype: str) -> None:
    encoder = whole(checkpoint if name == "random" else name, dtype)
    words = reopened(encoder.spec)
    assert isinstance(words, TextTowerFirst)
    assert words.spec == encoder.spec
    for texts in (TEXTS, *([text] for text in TEXTS)):
        expected, found = (e.encode_texts(texts, FEATURES) for e in (encoder, words))
        for feature in FEATURES:
            np.testing.assert_array_equal(found[feature], expected[feature])
            assert found[feature].dtype == expected[feature].dtype


@pytest.mark.parametrize("name", ["vlre-tiny", "vlre-photo", "random"])
def test_without_torch_vectors_are_equal_to_a_millionth(
    checkpoint: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = whole(checkpoint if name == "random" else name)
    monkeypatch.delitem(sys.modules, "torch")
    words = reopened(encoder.spec)
    monkeypatch.undo()
    assert isinstance(words, TextTowerFirst)
    assert words.spec == encoder.spec
    for texts in (TEXTS, *([text] for text in TEXTS)):
        expected, found = (e.encode_texts(texts, FEATURES) for e in (encoder, words))
        for feature in FEATURES:
            np.testing.assert_allclose(found[feature], expected[feature], atol=1e-5, rtol=1e-5)
            assert found[feature].dtype == expected[feature].dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_without_torch_a_store_of_half_precision_is_asked_in_float32(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = whole("vlre-photo", dtype).spec
    monkeypatch.delitem(sys.modules, "torch")
    words = reopened(spec)
    monkeypatch.undo()
    assert isinstance(words, TextTowerFirst)
    assert words.spec == spec
    found = words.encode_texts(TEXTS, ["itc"])["itc"]
    exact, rounded = (
        whole("vlre-photo", d).encode_texts(TEXTS, ["itc"])["itc"] for d in ("float32", dtype)
    )
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert np.einsum("tvd,tvd->tv", found, rounded).min() > 0.999


def test_a_tower_of_base_width_is_equal_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    from transformers import BlipForImageTextRetrieval

    config = tiny.blip_config(width=768, layers=1)  # the pictures' tower stays small
    config.text_config.num_attention_heads = 12
    config.vision_config = tiny.blip_config(layers=1).vision_config
    config.text_config.encoder_hidden_size = config.vision_config.hidden_size
    BlipForImageTextRetrieval(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    encoder = whole(tmp_path, "bfloat16")
    words = reopened(encoder.spec)
    assert isinstance(words, TextTowerFirst)
    expected, found = (e.encode_texts(TEXTS * 8, ["itc"])["itc"] for e in (encoder, words))
    np.testing.assert_array_equal(found, expected)


def test_all_else_is_the_whole_encoder_s(checkpoint: Path) -> None:
    encoder = whole(checkpoint)
    words = reopened(encoder.spec)
    assert isinstance(words, TextTowerFirst)
    for modality in Modality:
        assert words.features(modality) == encoder.features(modality)
    assert words.preprocessor == encoder.preprocessor
    assert words.default_batch_size == encoder.default_batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected, found = (e.encode_images(pixels, ["itc", "tokens"]) for e in (encoder, words))
    np.testing.assert_array_equal(found["itc"], expected["itc"])
    pairs = np.array([[0, 0], [1, 1]])
    logits, same = (
        e.matcher().score_pairs(expected["tokens"].__getitem__, TEXTS[:2], pairs)
        for e in (encoder, words)
    )
    np.testing.assert_array_equal(same, logits)


def test_an_encoder_that_waits_is_the_very_one_or_is_not_promised(checkpoint: Path) -> None:
    encoder = whole(checkpoint)

    def promised(
        asked: str = str(checkpoint),
        device: str = "cpu",
        dtype: str = "float32",
        fast: bool = False,
    ) -> EncoderToCome | None:
        return open_when_needed(
            encoder.spec, checkpoint=asked, device=device, dtype=dtype, fast_decode=fast
        )

    waits = promised()
    assert waits is not None
    assert waits.spec == encoder.spec
    size = encoder.preprocessor.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    for feature in ("itc", "pooled"):
        np.testing.assert_array_equal(
            waits.encode_images(pixels, [feature])[feature],
            encoder.encode_images(pixels, [feature])[feature],
        )
        np.testing.assert_array_equal(
            waits.encode_texts(TEXTS, [feature])[feature],
            encoder.encode_texts(TEXTS, [feature])[feature],
        )
    assert promised(dtype="bfloat16") is None
    assert promised(device="cuda") is None
    assert promised("vlre-tiny") is None
    assert promised(fast=True) is None  # other pixels, another fingerprint


@pytest.mark.parametrize("told", [True, False, None])
def test_auto_waits_only_where_it_is_known_without_torch_what_it_is(
    told: bool | None, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("machine", "models.device", "models.text_tower"):
        monkeypatch.setattr(f"retrieval_engine.{module}.has_fast_bfloat16", lambda: told)
    wait = partial(
        open_when_needed, checkpoint=str(checkpoint), device="cpu", dtype="auto", fast_decode=False
    )
    waits = {dtype: wait(whole(checkpoint, dtype).spec) for dtype in ("float32", "bfloat16")}
    assert {d for d, found in waits.items() if found} == {
        True: {"bfloat16"},
        False: {"float32"},
        None: set(),
    }[told]
    if told is not None:
        assert whole(checkpoint, "auto").spec.dtype == ("bfloat16" if told else "float32")


def test_another_checkpoint_than_the_spec_s_is_opened_whole(
    checkpoint: Path, tmp_path: Path
) -> None:
    other = tiny.save_blip(tmp_path / "other", seed=1)
    found = reopened(whole(checkpoint).spec, other)
    assert not isinstance(found, TextTowerFirst)
    assert found.spec == whole(other).spec


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("tokenizer_config.json", "do_lower_case", False),
        ("tokenizer_config.json", "strip_accents", False),
        ("tokenizer.json", "normalizer", {"type": "Lowercase"}),
        ("tokenizer.json", "pre_tokenizer", {"type": "Whitespace"}),
    ],
)
def test_a_tokenizer_that_the_file_does_not_tell_is_left_to_transformers(
    checkpoint: Path, tmp_path: Path, file: str, name: str, value: object
) -> None:
    path = tmp_path / "changed"
    shutil.copytree(checkpoint, path)
    said = json.loads((path / file).read_text(encoding="utf-8"))
    (path / file).write_text(json.dumps(said | {name: value}), encoding="utf-8")
    assert not isinstance(reopened(whole(path).spec), TextTowerFirst)


def test_settings_that_the_config_does_not_state_are_left_to_transformers(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "changed"
    shutil.copytree(checkpoint, path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    del config["text_config"]["layer_norm_eps"]
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert not isinstance(reopened(whole(path).spec), TextTowerFirst)


def test_pickled_weights_are_opened_whole(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "pickled"
    shutil.copytree(checkpoint, path)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    spec = whole(path).spec
    assert not isinstance(reopened(spec), TextTowerFirst)


def test_a_damaged_checkpoint_is_explained_as_ever(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    shutil.copytree(checkpoint, path)
    spec = whole(path).spec
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointInvalid) as before:
        whole(path)
    with pytest.raises(CheckpointInvalid) as now:
        reopened(spec)
    assert str(now.value) == str(before.value)
