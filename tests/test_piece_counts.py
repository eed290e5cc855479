"""How often a decoder read its words, and what becomes of its captions when that is taken off."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.generating import write_captions
from retrieval_engine.errors import CheckpointInvalid, UsageError
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.models.checksums import CHECKSUMS
from retrieval_engine.models.piece_counts import (
    PIECE_COUNTS,
    counted,
    log_frequencies,
    write_piece_counts,
)
from tests.golden import GOLDEN, import_golden

SHARE = 0.7
BIAS = "text_decoder.cls.predictions.bias"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_golden("blip/caption", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def told(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells how often it read each piece: some 10 to 100,000 times."""
    folder = tmp_path_factory.mktemp("told") / "model"
    shutil.copytree(plain, folder)
    captioner: Any = open_captioner(str(plain), device="cpu", dtype="float32")
    pieces = sorted(captioner.tokenizer.get_vocab())
    numbers = 10 ** np.random.default_rng(0).uniform(1, 5, len(pieces))
    write_piece_counts(folder, {p: int(n) for p, n in zip(pieces, numbers, strict=True)})
    return folder


def written(model: Path, options: DecodingOptions) -> list[list[tuple[tuple[int, ...], float]]]:
    tokens = torch.from_numpy(GOLDEN["blip"]["cap_vision_last_hidden_state"])
    captioner = open_captioner(str(model), device="cpu", dtype="float32")
    found = write_captions(captioner, tokens, [f"{i}.jpg" for i in range(len(tokens))], options)
    return [[(s.ids, round(s.score, 4)) for s in sentences] for sentences in found]


@pytest.mark.parametrize(
    "options",
    [{"beams": 1}, {"beams": 4, "num_captions": 3}, {"sample": True, "num_captions": 2, "seed": 3}],
    ids=["greedy", "beams", "sampling"],
)
def test_it_is_as_if_the_bias_were_less(
    told: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    captioner: Any = open_captioner(str(told), device="cpu", dtype="float32")
    less = tmp_path / "less"
    shutil.copytree(told, less)
    weights = load_file(told / "model.safetensors")
    for name in [n for n in weights if n.endswith("cls.predictions.bias")]:
        weights[name] = weights[name] - SHARE * torch.from_numpy(captioner.log_frequencies)
    (less / CHECKSUMS).unlink()
    save_file(weights, less / "model.safetensors", metadata={"format": "pt"})
    adjusted = written(told, DecodingOptions(logit_adjustment=SHARE, **options))
    assert adjusted == written(less, DecodingOptions(**options))
    assert adjusted != written(told, DecodingOptions(**options))


def test_common_pieces_are_alike_and_rare_ones_stay() -> None:
    counts = {"a": 9000, "dog": 900, "skier": 90, "owl": 30, "heron": 9, "beyond": 5000}
    vocabulary = {"[UNK]": 0, "a": 1, "dog": 2, "skier": 3, "owl": 4, "heron": 5, "beyond": 7}
    found = log_frequencies(counts, vocabulary, 6)
    np.testing.assert_array_equal(found, 0)  # half of the pieces count as common
    many = {str(i): 1000 for i in range(90)} | counts
    found = log_frequencies(many, {**vocabulary, **{str(i): 9 + i for i in range(90)}}, 100)
    expected = [0, 0, np.log(0.9), np.log(0.09), np.log(0.03), 0]
    np.testing.assert_allclose(found[:6], expected, rtol=1e-6)
    assert not found[6:].any()


def test_pieces_are_counted_without_what_encloses_a_sentence(told: Path) -> None:
    captioner: Any = open_captioner(str(told), device="cpu", dtype="float32")
    tokenizer = captioner.tokenizer
    counts = counted(tokenizer, ["a picture of", "a picture", "of"])
    two = tokenizer("of a")["input_ids"][1:-1]
    expected = tokenizer.convert_ids_to_tokens(two)
    assert all(counts[piece] == 2 for piece in expected)
    assert not {"[CLS]", "[SEP]"} & set(counts)


def test_a_model_that_does_not_tell_is_refused(plain: Path) -> None:
    with pytest.raises(UsageError, match=r"`logit_adjustment` 0.5 needs piece_counts\.json"):
        written(plain, DecodingOptions(logit_adjustment=0.5))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match=r"`logit_adjustment` is .*, must be from 0 to 1"):
        DecodingOptions(logit_adjustment=share)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": "x"}', '{"a": 0}', "[1", '{"a": NaN}'])
def test_damaged_counts_are_named(told: Path, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(told, folder)
    (folder / PIECE_COUNTS).write_text(text)
    with pytest.raises(CheckpointInvalid, match=PIECE_COUNTS):
        written(folder, DecodingOptions(logit_adjustment=0.5))
    assert written(folder, DecodingOptions(beams=1)) == written(told, DecodingOptions(beams=1))


def test_runs_without_it_keep_their_name(told: Path) -> None:
    assert "logit_adjustment" not in DecodingOptions().to_json()
    assert DecodingOptions(logit_adjustment=0.2).to_json()["logit_adjustment"] == 0.2
    order = list(json.loads((told / PIECE_COUNTS).read_text()).values())
    assert order == sorted(order, reverse=True)
