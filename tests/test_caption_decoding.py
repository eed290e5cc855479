"""Captions word by word: equal to the authors', to transformers', and to themselves in any batch."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Blip2ForConditionalGeneration, BlipForConditionalGeneration

from retrieval_engine.caption.beams import Sentence
from retrieval_engine.caption.decoding import BeamRule, DecodingOptions, Method
from retrieval_engine.caption.generating import write_captions
from retrieval_engine.caption.logit_rules import LogitRules, draw
from retrieval_engine.errors import CheckpointInvalid, UsageError
from retrieval_engine.models import open_encoder
from retrieval_engine.models.captioner import Captioner, open_captioner
from retrieval_engine.models.device import normalized_pixels
from retrieval_engine.records import Modality
from retrieval_engine.testing import CaptionerContract
from tests import tiny, tiny_blip2
from tests.golden import GOLDEN, import_golden

BLIP = GOLDEN["blip"]
PROMPT = BLIP.expected["prompt"]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
NAMES = [f"{i}.jpg" for i in range(12)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_golden("blip/caption", tmp_path_factory.mktemp("caption"))


@pytest.fixture(scope="module")
def captioner(checkpoint: Path) -> Captioner:
    return open_captioner(str(checkpoint), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    """The model as transformers has it."""
    return BlipForConditionalGeneration.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.from_numpy(BLIP["cap_vision_last_hidden_state"])


def options(setting: dict[str, Any], **changes: Any) -> DecodingOptions:
    """The options that a golden setting means; the authors' defaults are 3, 30 and 10."""
    values = {"num_beams": 3, "max_length": 30, "min_length": 10, **setting}
    beams = values.pop("num_beams")
    return DecodingOptions(beams=beams, **values, **changes)


def ids(found: list[list[Sentence]]) -> list[list[tuple[int, ...]]]:
    return [[sentence.ids for sentence in sentences] for sentences in found]


def test_rules_of_the_checkpoint_hold_where_nobody_says(checkpoint: Path, tmp_path: Path) -> None:
    """`no_repeat_ngram_size` and `repetition_penalty` of generation_config.json, as transformers."""
    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    said = model / "generation_config.json"
    values = json.loads(said.read_text()) if said.is_file() else {}
    rules = {"no_repeat_ngram_size": 2, "repetition_penalty": 1.4}
    said.write_text(json.dumps(values | rules))
    ruled = open_captioner(str(model), device="cpu", dtype="float32")
    plain = open_captioner(str(checkpoint), device="cpu", dtype="float32")
    tokens = torch.from_numpy(BLIP["cap_vision_last_hidden_state"])
    names = NAMES[: len(tokens)]
    asked = DecodingOptions(min_length=12, no_repeat_ngram=2, repetition_penalty=1.4)
    without = DecodingOptions(min_length=12, no_repeat_ngram=0, repetition_penalty=1.0)
    silent = DecodingOptions(min_length=12)
    expected = ids(write_captions(plain, tokens, names, asked))
    assert ids(write_captions(ruled, tokens, names, silent)) == expected
    assert ids(write_captions(ruled, tokens, names, without)) != expected
    assert ids(write_captions(plain, tokens, names, silent)) != expected


@pytest.mark.parametrize("name", BLIP.expected["generation"])
def test_ids_and_words_are_the_authors_own(
    captioner: Captioner, tokens: torch.Tensor, name: str
) -> None:
    setting = BLIP.expected["generation"][name]
    found = write_captions(captioner, tokens, NAMES, options(setting["kwargs"]))
    start = captioner.prompt_ids(PROMPT)
    expected = BLIP[f"gen_{name}"]
    for (sentence,), row in zip(found, expected, strict=True):
        written = [*start, *sentence.ids]
        assert row[: len(written)].tolist() == written
        assert row[len(written) :].tolist()[:1] in ([], [captioner.end_id])
    words = [captioner.text(sentence.ids, PROMPT) for (sentence,) in found]
    assert words == setting["captions"]


def test_the_vision_tower_is_the_authors(captioner: Captioner) -> None:
    pixels = BLIP["pixel_values"].transpose(0, 2, 3, 1)
    mean, std = np.array(captioner.preprocessor.mean), np.array(captioner.preprocessor.std)
    bytes_ = np.rint((pixels * std + mean) * 255).astype(np.uint8)
    found = captioner.encode_images(bytes_, ["tokens"])["tokens"]
    np.testing.assert_allclose(found, BLIP["cap_vision_last_hidden_state"], atol=1e-5)


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {"min_length": 1},
        {"min_length": 8, "no_repeat_ngram": 2},
        {"min_length": 6, "repetition_penalty": 1.4},
        {"min_length": 1, "length_penalty": 2.0},
    ],
)
def test_blip_writes_what_transformers_writes(
    theirs: Any, captioner: Captioner, tokens: torch.Tensor, beams: int, changes: Any
) -> None:
    """Through their own generate, from the same vision states: every beam, in its order."""
    if beams == 1:
        changes = {k: v for k, v in changes.items() if k != "length_penalty"}
    given: dict[str, Any] = dict(changes)
    names = {"no_repeat_ngram": "no_repeat_ngram_size"}
    asked: dict[str, Any] = {names.get(name, name): value for name, value in given.items()}
    if beams > 1:
        given["beam_rule"] = BeamRule.TRANSFORMERS
    chosen = DecodingOptions(beams=beams, num_captions=beams, max_length=16, **given)
    found = ids(write_captions(captioner, tokens, NAMES, chosen))
    start = torch.tensor([captioner.prompt_ids(PROMPT)]).repeat(len(tokens), 1)
    rows = theirs.text_decoder.generate(
        input_ids=start,
        encoder_hidden_states=tokens,
        encoder_attention_mask=torch.ones(tokens.shape[:2], dtype=torch.long),
        eos_token_id=captioner.end_id,
        pad_token_id=0,
        num_beams=beams,
        num_return_sequences=beams,
        max_length=16,
        **asked,
    ).view(len(tokens), beams, -1)
    expected = [
        [_until_end(row[start.shape[1] :], captioner.end_id) for row in group]
        for group in rows.tolist()
    ]
    assert found == expected


def _until_end(row: list[int], end: int) -> tuple[int, ...]:
    return tuple(row[: row.index(end)] if end in row else row)


class TestBlip(CaptionerContract):
    def open(self, folder: Path) -> Captioner:
        checkpoint = folder / "caption"
        if not checkpoint.exists():
            import_golden("blip/caption", checkpoint)
        return open_captioner(str(checkpoint), device="cpu", dtype="float32")


class TestBlip2Opt(CaptionerContract):
    def open(self, folder: Path) -> Captioner:
        torch.manual_seed(3)
        save_ending(tiny_blip2.save_blip2_opt, folder, Blip2ForConditionalGeneration)
        return open_captioner(str(folder), device="cpu", dtype="float32")


class TestBlip2T5(CaptionerContract):
    def open(self, folder: Path) -> Captioner:
        torch.manual_seed(3)
        save_ending(tiny_blip2.save_blip2_t5, folder, Blip2ForConditionalGeneration)
        return open_captioner(str(folder), device="cpu", dtype="float32")


class TestShippedModel(CaptionerContract):
    def open(self, folder: Path) -> Captioner:
        return open_captioner("vlre-tiny", device="cpu", dtype="float32")


def save_ending(save: Any, directory: Path, kind: Any) -> Path:
    """A random BLIP-2 whose sentences end now and then, not never or at once."""
    save(directory)
    model = kind.from_pretrained(directory)
    head = model.language_model.get_output_embeddings().weight
    with torch.no_grad():
        head[3] = head.mean(0) + 10 * torch.randn(head.shape[1]) * head.std()
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """A BLIP-2 of each language model."""
    made = {}
    for save in (tiny_blip2.save_blip2_opt, tiny_blip2.save_blip2_t5):
        torch.manual_seed(3)
        folder = tmp_path_factory.mktemp("ending")
        made[save] = save_ending(save, folder, Blip2ForConditionalGeneration)
    return made


@pytest.mark.parametrize(
    ("save", "changes"),
    [
        (save, changes)
        for save in (tiny_blip2.save_blip2_opt, tiny_blip2.save_blip2_t5)
        for changes in (
            {"beams": 1},
            {"beams": 4, "num_captions": 4},
            {"beams": 3, "num_captions": 2, "length_penalty": 0.5},
        )
    ],
)
def test_blip2_writes_what_transformers_writes(
    ending: dict[Any, Path], save: Any, changes: Any
) -> None:
    path = ending[save]
    captioner = open_captioner(str(path), device="cpu", dtype="float32")
    tokens = captioner.encode_images(PIXELS, ["tokens"])["tokens"]
    rule = BeamRule.TRANSFORMERS if changes["beams"] > 1 else None
    chosen = DecodingOptions(**changes, beam_rule=rule, max_length=10, min_length=0)
    found = ids(write_captions(captioner, torch.from_numpy(tokens), NAMES[:6], chosen))

    model = Blip2ForConditionalGeneration.from_pretrained(path).eval()
    prompt = captioner.tokenizer(captioner.prompt)["input_ids"]  # type: ignore[attr-defined]
    images = [model.config.image_token_index] * tiny_blip2.QUERIES
    rows = model.generate(
        normalized_pixels(PIXELS, captioner.preprocessor, captioner.device),
        input_ids=torch.tensor([images + prompt]).repeat(len(PIXELS), 1),
        eos_token_id=captioner.end_id,
        pad_token_id=0,
        max_new_tokens=10,
        num_beams=changes["beams"],
        num_return_sequences=chosen.num_captions,
        **{k: v for k, v in changes.items() if k == "length_penalty"},
    )
    skipped = 1 if model.config.text_config.model_type == "t5" else len(images) + len(prompt)
    expected = [_until_end(row[skipped:], captioner.end_id) for row in rows.tolist()]
    assert [sentence for group in found for sentence in group] == expected
    if changes["beams"] > 1:
        assert any(0 < len(sentence) < 10 for sentence in expected), "none ended by itself"


def test_sampling_depends_on_the_seed_and_draws_what_is_likely(
    captioner: Captioner, tokens: torch.Tensor
) -> None:
    def written(**changes: Any) -> list[list[tuple[int, ...]]]:
        chosen = DecodingOptions(sample=True, num_captions=4, **changes)
        return ids(write_captions(captioner, tokens, NAMES, chosen))

    hot = written(temperature=4.0, seed=1)
    assert hot == written(temperature=4.0, seed=1)
    assert hot != written(temperature=4.0, seed=2)
    assert any(len(set(sentences)) > 1 for sentences in hot)
    greedy = ids(write_captions(captioner, tokens, NAMES, DecodingOptions(beams=1)))
    for cold in (written(temperature=0.01), written(top_k=1), written(top_p=1e-6)):
        assert [set(sentences) for sentences in cold] == [{s[0]} for s in greedy]


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0]).log_softmax(-1).expand(1, 20_000, -1)
    uniform = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:-1][None]
    counts = torch.bincount(draw(logits, uniform)[0], minlength=4) / 20_000
    torch.testing.assert_close(counts, logits[0, 0].exp(), atol=1e-3, rtol=0)
    kept = torch.bincount(draw(logits, uniform, top_k=2)[0], minlength=4) / 20_000
    e = float(np.e)
    torch.testing.assert_close(kept, torch.tensor([e, 0, 1, 0]) / (e + 1), atol=1e-3, rtol=0)
    nucleus = torch.bincount(draw(logits, uniform, top_p=0.7)[0], minlength=4)
    assert nucleus[1] == nucleus[3] == 0
    assert nucleus[2] > 0
    flat = torch.bincount(draw(logits, uniform, temperature=1e6)[0], minlength=4) / 20_000
    torch.testing.assert_close(flat, torch.full((4,), 0.25), atol=1e-3, rtol=0)


def test_rounding_hardly_changes_what_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2_000, 500, generator=generator).round(decimals=1)  # many near ties
    uniform = torch.rand(1, 2_000, dtype=torch.float64, generator=generator)
    rounded = logits + 1e-6 * torch.randn(logits.shape, generator=generator)
    assert (draw(logits, uniform) == draw(rounded, uniform)).float().mean() > 0.999


def test_rules_equal_transformers_processors() -> None:
    from transformers.generation import (
        MinLengthLogitsProcessor,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
    )

    torch.manual_seed(0)
    sentences, scores = torch.randint(0, 5, (3, 2, 9)), torch.randn(3, 2, 11)
    for size in (1, 2, 3, 9):
        rules = LogitRules(end_id=7, min_length=10, repetition_penalty=1.3, no_repeat_ngram=size)
        found = rules(sentences, scores.clone())
        flat, expected = sentences.view(6, 9), scores.clone().view(6, 11)
        for processor in (
            RepetitionPenaltyLogitsProcessor(1.3),
            NoRepeatNGramLogitsProcessor(size),
            MinLengthLogitsProcessor(10, 7, device="cpu"),
        ):
            expected = processor(flat, expected)
        torch.testing.assert_close(found.view(6, 11), expected)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"temperature": 0.7}, "`temperature` 0.7 has no effect on beam search"),
        ({"beams": 1, "top_p": 0.9}, "`top_p` 0.9 has no effect on greedy decoding"),
        ({"top_k": 5}, "`top_k` 5 has no effect on beam search"),
        ({"seed": 5}, "`seed` 5 has no effect"),
        ({"sample": True, "beams": 3}, "contradict"),
        ({"beams": 1, "num_captions": 2}, "greedy decoding knows one"),
        ({"beams": 2, "num_captions": 3}, "`num_captions=3` is more than `beams=2`"),
        ({"beams": 1, "length_penalty": 2.0}, "`length_penalty` 2.0 has no effect"),
        ({"sample": True, "beam_rule": BeamRule.ORIGINAL}, "has no effect on sampling"),
        ({"min_length": 31, "max_length": 30}, "`min_length=31` is above `max_length=30`"),
        ({"sample": True, "temperature": 0.0}, "`temperature` is 0.0, must be above 0"),
        ({"sample": True, "top_p": 1.5}, "`top_p` is 1.5"),
        ({"beams": 0}, "`beams` is 0"),
        ({"repetition_penalty": -1.0}, "`repetition_penalty` is"),
    ],
)
def test_contradictions_are_refused(changes: Any, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        DecodingOptions(**changes)


def test_only_what_matters_decides_the_settings() -> None:
    assert DecodingOptions().to_json() == DecodingOptions(beams=3, length_penalty=1.0).to_json()
    assert DecodingOptions().method is Method.BEAMS
    greedy = DecodingOptions(beams=1).to_json()
    assert "beams" not in greedy
    assert "seed" not in greedy
    assert DecodingOptions(sample=True, seed=1).to_json() != DecodingOptions(sample=True).to_json()


def test_lengths_are_counted_as_the_authors_do(captioner: Captioner, tokens: torch.Tensor) -> None:
    found = ids(write_captions(captioner, tokens, NAMES, DecodingOptions(beams=1, max_length=7)))
    assert max(len(sentence) for (sentence,) in found) == 3  # [DEC] a picture of
    with pytest.raises(UsageError, match="leaves no room after the 4 tokens"):
        write_captions(captioner, tokens, NAMES, DecodingOptions(max_length=4))
    with pytest.raises(UsageError, match="`max_length=65` is more than"):
        write_captions(captioner, tokens, NAMES, DecodingOptions(max_length=65))


def test_half_precision_writes_the_same_but_for_close_calls(
    checkpoint: Path, captioner: Captioner, tokens: torch.Tensor
) -> None:
    half = open_captioner(str(checkpoint), device="cpu", dtype="bfloat16")
    chosen = DecodingOptions(beams=1, max_length=20, min_length=5)
    a = ids(write_captions(captioner, tokens, NAMES, chosen))
    b = ids(write_captions(half, tokens, NAMES, chosen))
    assert sum(x == y for x, y in zip(a, b, strict=True)) >= 10
    assert half.spec.part("vision") != captioner.spec.part("vision")


def test_one_tower_one_fingerprint(tmp_path: Path) -> None:
    """A retrieval and a captioning checkpoint with the same tower share stored tokens."""
    both = tiny.save_blip(tmp_path / "blip")
    with pytest.raises(CheckpointInvalid, match="writes no captions"):
        open_captioner(str(both))
    retrieval = open_encoder(str(both), device="cpu", dtype="float32")
    other = open_captioner(
        str(tiny.save_blip_captioner(tmp_path / "other", seed=1)), dtype="float32"
    )
    mixed = save_both(tmp_path / "mixed", both, tmp_path / "other")
    captioner = open_captioner(str(mixed), device="cpu", dtype="float32")
    tokens = retrieval.features(Modality.IMAGES)["tokens"]
    assert captioner.features(Modality.IMAGES) == {"tokens": tokens}
    assert other.features(Modality.IMAGES)["tokens"].fingerprint != tokens.fingerprint
    np.testing.assert_array_equal(
        captioner.encode_images(PIXELS, ["tokens"])["tokens"],
        retrieval.encode_images(PIXELS, ["tokens"])["tokens"],
    )
    again = open_encoder(str(mixed), device="cpu", dtype="float32")
    assert again.spec.fingerprint == retrieval.spec.fingerprint

    t5 = str(tiny_blip2.save_blip2_t5(tmp_path / "t5"))
    writer = open_captioner(t5, device="cpu", dtype="float32").features(Modality.IMAGES)
    reader = open_encoder(t5, device="cpu", dtype="float32").features(Modality.IMAGES)
    assert writer["tokens"] == reader["tokens"]


def save_both(out: Path, retrieval: Path, captioner: Path) -> Path:
    """One directory with the heads of both, as `vlre-tiny` is: tower of the first.

    The decoder's weights are made larger: at their random size every picture has one caption.
    """
    from safetensors.torch import load_file, save_file

    out.mkdir()
    tensors = load_file(captioner / "model.safetensors")
    tensors = {
        name: 8 * value if value.dim() > 1 else value
        for name, value in tensors.items()
        if name.startswith("text_decoder.")
    }
    save_file(
        tensors | load_file(retrieval / "model.safetensors"),
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    for file in retrieval.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    (out / "generation_config.json").write_text('{"prompt": "a picture of "}')
    return out
