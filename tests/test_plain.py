"""BLIP without transformers against transformers: bit by bit, or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.blip.captioner import BlipCaptioner
from retrieval_engine.models.blip.encoder import BlipEncoder
from retrieval_engine.models.blip.plain import PlainBlip, plain_captioning, plain_retrieval
from retrieval_engine.models.wordpiece import open_wordpiece
from tests import tiny

TEXTS = ["a dog on grass", "Two birds, it's night!", "café — 北京 [SEP] qwerty " * 9]
PAIRS = np.array([[image, text] for image in range(3) for text in range(3)])
MODELS = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("random", "float32"), ("random", "bfloat16")),
        *(("vlre-tiny", "bfloat16"), ("vlre-photo", "float32")),
    ],
)


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_blip(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def captioning(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_blip_captioner(tmp_path_factory.mktemp("plain-captions")))


def pixels(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)


@MODELS
def test_features_and_matches_are_equal_bit_by_bit(retrieval: str, name: str, dtype: str) -> None:
    checkpoint = resolve(retrieval if name == "random" else name)
    theirs = BlipEncoder(checkpoint, device="cpu", dtype=dtype)
    ours = BlipEncoder(checkpoint, device="cpu", dtype=dtype, plain=True)
    assert isinstance(ours.model, PlainBlip)
    assert not isinstance(theirs.model, PlainBlip)
    assert ours.spec == theirs.spec
    some = pixels(ours.spec.image_size)
    features = ["itc", "pooled", "tokens"]
    found, expected = (e.encode_images(some, features) for e in (ours, theirs))
    for feature in features:
        np.testing.assert_array_equal(found[feature], expected[feature])
    said = ["itc", "pooled", "token_ids", "token_mask"]
    for texts in (TEXTS, TEXTS[:1]):
        words, right = (e.encode_texts(texts, said) for e in (ours, theirs))
        for feature in said:
            np.testing.assert_array_equal(words[feature], right[feature])
    tokens = expected["tokens"]
    logits, same = (
        e.matcher().score_pairs(tokens.__getitem__, TEXTS, PAIRS) for e in (ours, theirs)
    )
    np.testing.assert_array_equal(logits, same)


@MODELS
def test_captions_are_equal_bit_by_bit(captioning: str, name: str, dtype: str) -> None:
    checkpoint = resolve(captioning if name == "random" else name)
    theirs = BlipCaptioner(checkpoint, device="cpu", dtype=dtype)
    ours = BlipCaptioner(checkpoint, device="cpu", dtype=dtype, plain=True)
    assert isinstance(ours.model, PlainBlip)
    assert (ours.spec, ours.image_features()) == (theirs.spec, theirs.image_features())
    assert (ours.longest, ours.default_length) == (theirs.longest, theirs.default_length)
    some = pixels(ours.spec.image_size)
    tokens, same = (
        torch.from_numpy(c.encode_images(some, ["tokens"])["tokens"]) for c in (ours, theirs)
    )
    assert torch.equal(tokens, same)
    with torch.inference_mode(), ours.autocast():
        (logits, going), (right, other) = (c.begin(tokens, "a picture of ") for c in (ours, theirs))
        for _ in range(3):
            assert torch.equal(logits, right)
            ids = logits.view(len(tokens), -1).argmax(-1)[:, None]
            logits, right = going.step(ids, None), other.step(ids, None)
    maps, seen = (c.relevance(tokens[:1], "a ", [8, 9, 10]) for c in (ours, theirs))
    assert [word for word, _ in maps] == [word for word, _ in seen]
    for (_, ours_), (_, theirs_) in zip(maps, seen, strict=True):
        np.testing.assert_array_equal(ours_, theirs_)


@pytest.mark.parametrize("name", ["vlre-tiny", "vlre-photo", "random"])
def test_words_are_those_of_transformers(retrieval: str, name: str) -> None:
    path = resolve(retrieval if name == "random" else name).path
    theirs, ours = BertTokenizer.from_pretrained(path), open_wordpiece(path)
    assert ours is not None
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.pad_token_id, ours.truncation_side) == (theirs.pad_token_id, "right")
    for texts in (TEXTS, TEXTS[2], TEXTS * 22):
        assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]
        cut = ours(texts, truncation=True, max_length=7)["input_ids"]
        assert cut == theirs(texts, truncation=True, max_length=7)["input_ids"]
    known = sorted(ours.get_vocab().values())  # the random one's have holes
    for ids in np.random.default_rng(0).choice(known, (100, 9)).tolist():
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
        for clean in (False, True):
            how = {"skip_special_tokens": clean, "clean_up_tokenization_spaces": clean}
            assert ours.decode(ids, **how) == theirs.decode(ids, **how)
    said = "it ' s a dog , is n't it ? they 've , we 're , i 'm ."
    ids = ours(said)["input_ids"]
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": True}
    assert ours.decode(ids, **how) == theirs.decode(ids, **how)


def changed(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        said = json.loads((path / file).read_text(encoding="utf-8"))
        change(said)
        (path / file).write_text(json.dumps(said), encoding="utf-8")

    return apply


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return apply


def pickled(path: Path) -> None:
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


TEXT_HEAD = "text_decoder.cls.predictions.decoder.weight"
CASES = {
    "another activation": changed(
        "config.json", lambda c: c["vision_config"].update(hidden_act="quick_gelu")
    ),
    "unsaid settings": changed("config.json", lambda c: c["text_config"].pop("layer_norm_eps")),
    "unsaid words": changed("config.json", lambda c: c["text_config"].pop("sep_token_id")),
    "an untied head": changed("config.json", lambda c: c.update(tie_word_embeddings=False)),
    "other sizes": changed("config.json", lambda c: c["text_config"].update(intermediate_size=80)),
    "few rows": changed("config.json", lambda c: c["text_config"].update(vocab_size=20)),
    "a token beside": changed(
        "tokenizer_config.json", lambda c: c.update(extra_special_tokens=["[SEEN]"])
    ),
    "a token that is none": changed(
        "tokenizer.json", lambda c: c["added_tokens"][-1].update(special=False)
    ),
    "another decoder": changed("tokenizer.json", lambda c: c.update(decoder=None)),
    "other head": with_weights(
        lambda t: t.update({TEXT_HEAD: torch.ones(len(tiny.VOCABULARY) + 2, 32)})
    ),
    "pickled": pickled,
    "a missing tensor": with_weights(lambda t: t.pop("vision_model.post_layernorm.weight")),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_certain_is_left_to_transformers(
    captioning: str, tmp_path: Path, case: str
) -> None:
    assert plain_captioning(resolve(captioning)) is not None
    path = Path(shutil.copytree(captioning, tmp_path / "changed"))
    CASES[case](path)
    assert plain_captioning(resolve(str(path))) is None


def test_a_captioner_is_no_retrieval_model(captioning: str) -> None:
    assert plain_retrieval(resolve(captioning)) is None
