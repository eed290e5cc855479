"""The words that a decoder read: captions keep to them, and take what was rare where that is asked."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.generating import write_captions
from retrieval_engine.errors import CheckpointInvalid, UsageError
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.models.checksums import CHECKSUMS
from retrieval_engine.models.lexicon import (
    WORD_COUNTS,
    Lexicon,
    counted,
    read_lexicon,
    write_word_counts,
)
from retrieval_engine.train.model_files import write_model
from tests.golden import GOLDEN, import_golden

SHARE = 0.7
LONG: dict[str, Any] = {"max_length": 24, "min_length": 20}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_golden("blip/caption", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def words(plain: Path) -> list[str]:
    """Every third beginning of a word, and every fifth of these with something behind it."""
    captioner: Any = open_captioner(str(plain), device="cpu", dtype="float32")
    pieces = sorted(captioner.tokenizer.get_vocab())
    begin = [p for p in pieces if p.isalpha()][::3]
    behind = [p[2:] for p in pieces if p.startswith("##") and p[2:].isalpha()]
    both = [a + b for a, b in zip(begin[::5], behind, strict=False)]
    return [*begin, *both] if behind else begin


@pytest.fixture(scope="module")
def told(plain: Path, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells how often it read each word: some 10 to 100,000 times."""
    folder = tmp_path_factory.mktemp("told") / "model"
    shutil.copytree(plain, folder)
    numbers = 10 ** np.random.default_rng(0).uniform(1, 5, len(words))
    write_word_counts(folder, {w: int(n) for w, n in zip(words, numbers, strict=True)})
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
        weights[name] = weights[name] - SHARE * torch.from_numpy(captioner.lexicon.log_frequencies)
    (less / CHECKSUMS).unlink()
    save_file(weights, less / "model.safetensors", metadata={"format": "pt"})
    adjusted = written(told, DecodingOptions(logit_adjustment=SHARE, **options))
    assert adjusted == written(less, DecodingOptions(**options))
    assert adjusted != written(told, DecodingOptions(**options))


class Pieces:
    """A tokenizer of a few pieces."""

    names = ("[UNK]", "[CLS]", "[SEP]", "a", "dog", "ski", "##er", "owl", "heron", "##s")

    def get_vocab(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        known = {"skier": [5, 6], "skiers": [5, 6, 9], "owls": [7, 9]}
        return {"input_ids": [[1, *known.get(t, [self.get_vocab().get(t, 0)]), 2] for t in texts]}


COUNTS = {"a": 9000, "dog": 900, "skier": 60, "skiers": 30, "heron": 9, "owls": 30}


def test_common_pieces_are_alike_and_rare_ones_stay() -> None:
    found = Lexicon(COUNTS, Pieces(), 11).log_frequencies
    # Half of the eight pieces count as common: [a, dog, ski, ##er 90 | ##s 60, owl 30, heron 9]
    expected = np.zeros(11)
    expected[[9, 7]] = np.log([60 / 90, 30 / 90])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("sentence", "following"),
    [
        ([1], {0, 1, 2, 3, 4, 5, 7, 8, 10}),  # any word may begin, or the sentence end
        ([1, 4], {0, 1, 2, 3, 4, 5, 7, 8, 10}),  # "dogs" and "doger" are none
        ([1, 4, 5], {6}),  # "ski" alone is none
        ([1, 5, 6], {0, 1, 2, 3, 4, 5, 7, 8, 9, 10}),  # "skier", "skiers"
        ([1, 5, 6, 9], {0, 1, 2, 3, 4, 5, 7, 8, 10}),
        ([1, 3, 7], {9}),
        ([1, 8, 9], {0, 1, 2, 3, 4, 5, 7, 8, 10}),  # "herons", of a prompt perhaps
        ([9], {0, 1, 2, 3, 4, 5, 7, 8, 10}),
    ],
)
def test_only_words_are_written(sentence: list[int], following: set[int]) -> None:
    scores = torch.zeros(1, 1, 11)
    Lexicon(COUNTS, Pieces(), 11).keep_to_words(torch.tensor([[sentence]]), scores)
    assert set(scores[0, 0].isfinite().nonzero()[:, 0].tolist()) == following


def test_where_a_rule_forbids_the_rest_of_a_word_it_is_broken_off() -> None:
    scores = torch.zeros(1, 2, 11)
    scores[0, 0, 6] = float("-inf")  # was written before, say
    Lexicon(COUNTS, Pieces(), 11).keep_to_words(torch.tensor([[[1, 5], [1, 5]]]), scores)
    assert scores[0, 0].isfinite().sum() == 9
    assert scores[0, 1].isfinite().nonzero()[:, 0].tolist() == [6]


@pytest.mark.parametrize(
    "options",
    [
        {"beams": 1},
        {"beams": 4, "num_captions": 3},
        {"sample": True, "num_captions": 3, "top_k": 50},
    ],
    ids=["greedy", "beams", "sampling"],
)
def test_captions_hold_no_other_words(
    told: Path, plain: Path, words: list[str], options: dict[str, Any]
) -> None:
    captioner: Any = open_captioner(str(told), device="cpu", dtype="float32")

    def others(model: Path) -> set[str]:
        found = written(model, DecodingOptions(**options, **LONG))
        texts = [captioner.text(ids, captioner.prompt) for row in found for ids, _ in row]
        return {word for text in texts for word in text.split()[:-1]} - set(words)

    assert others(plain)
    assert not others(told)


def test_words_are_counted_as_the_tokenizer_parts_them() -> None:
    captioner: Any = open_captioner("vlre-photo", device="cpu", dtype="float32")
    counts = counted(captioner.tokenizer, ["a bicyclist's dog.", "A frisbee \u2603", "a"])
    expected = {"a": 3, "bicyclist": 1, "'": 1, "s": 1, "dog": 1, ".": 1, "frisbee": 1}
    assert counts == expected


def test_a_model_that_does_not_tell_is_refused(plain: Path) -> None:
    with pytest.raises(UsageError, match=r"`logit_adjustment` 0.5 needs word_counts\.json"):
        written(plain, DecodingOptions(logit_adjustment=0.5))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match=r"`logit_adjustment` is .*, must be from 0 to 1"):
        DecodingOptions(logit_adjustment=share)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": "x"}', '{"a": 0}', "[1", '{"a": NaN}'])
def test_damaged_counts_are_named(told: Path, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(told, folder)
    (folder / WORD_COUNTS).write_text(text)
    with pytest.raises(CheckpointInvalid, match=WORD_COUNTS):
        written(folder, DecodingOptions(logit_adjustment=0.5))


def test_runs_without_an_adjustment_keep_their_name(told: Path) -> None:
    assert "logit_adjustment" not in DecodingOptions().to_json()
    assert DecodingOptions(logit_adjustment=0.2).to_json()["logit_adjustment"] == 0.2
    order = list(json.loads((told / WORD_COUNTS).read_text()).values())
    assert order == sorted(order, reverse=True)


def test_who_learned_other_captions_may_write_other_words(told: Path, tmp_path: Path) -> None:
    write_model(told, {}, tmp_path / "tuned")
    tuned: Any = open_captioner(str(tmp_path / "tuned"), device="cpu", dtype="float32")
    assert tuned.lexicon is None
    base, tokenizer = resolve(str(told)), tuned.tokenizer
    assert read_lexicon(base, tokenizer, 2002)
    assert read_lexicon(replace(base, adapter=tmp_path), tokenizer, 2002) is None


def test_other_words_are_another_captioner_with_the_same_tower(
    told: Path, plain: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(told, other)
    write_word_counts(other, {"a": 1})
    specs = [
        open_captioner(str(m), device="cpu", dtype="float32").spec for m in (plain, told, other)
    ]
    assert len({spec.fingerprint for spec in specs}) == 3
    assert len({spec.part("vision") for spec in specs}) == 1
