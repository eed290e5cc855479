"""Pair scores from stored states against transformers' own cross-encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_engine import open_encoder
from retrieval_engine.errors import UsageError
from retrieval_engine.models import Encoder
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.blip.encoder import BlipEncoder
from retrieval_engine.models.matcher import by_images
from retrieval_engine.sources.scenes.draw import draw
from retrieval_engine.sources.scenes.world import world_at
from retrieval_engine.testing import MatcherContract
from tests import tiny, tiny_blip2

TEXTS = ["a dog", "a red car on the street at night", "two birds on grass", "a man and a woman"]


class TestBlip(MatcherContract):
    def open(self, folder: Path) -> Encoder:
        return open_encoder(str(tiny.save_blip(folder)), device="cpu", dtype="float32")


class TestBlip2(MatcherContract):
    def open(self, folder: Path) -> Encoder:
        return open_encoder(str(tiny_blip2.save_blip2(folder)), device="cpu", dtype="float32")


class TestShippedModel(MatcherContract):
    def open(self, folder: Path) -> Encoder:
        return open_encoder("vlre-tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> BlipEncoder:
    path = tiny.save_blip(tmp_path_factory.mktemp("blip"))
    return BlipEncoder(resolve(str(path)), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tokens(encoder: BlipEncoder) -> np.ndarray:
    shape = (5, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3)
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    return encoder.encode_images(pixels, ["tokens"])["tokens"]


def plain_scores(encoder: BlipEncoder, tokens: np.ndarray, *, first: int) -> np.ndarray:
    """(images, texts) logits through transformers' modules, one pair at a time."""
    scores = np.empty((len(tokens), len(TEXTS)), dtype=np.float32)
    for j, ids in enumerate(encoder.tokenize(TEXTS)):
        for i, states in enumerate(tokens):
            with torch.no_grad():
                output = encoder.model.text_encoder(
                    input_ids=torch.tensor([[first, *ids[1:]]]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    encoder_hidden_states=torch.from_numpy(states)[None],
                ).last_hidden_state
                scores[i, j] = encoder.model.itm_head(output[:, 0])[0, 1]
    return scores


def test_scores_equal_one_pair_at_a_time(encoder: BlipEncoder, tokens: np.ndarray) -> None:
    pairs = np.array([(i, j) for i in range(5) for j in range(4)])
    rng = np.random.default_rng(0)
    pairs = rng.permutation(pairs)
    found = encoder.matcher().score_pairs(lambda rows: tokens[rows], TEXTS, pairs)
    expected = plain_scores(encoder, tokens, first=encoder.enc_token_id)
    np.testing.assert_allclose(found, expected[pairs[:, 0], pairs[:, 1]], atol=1e-5)
    with_cls = plain_scores(encoder, tokens, first=encoder.tokenizer.cls_token_id)
    assert abs(with_cls - expected).max() > 1e-3, "[ENC] and [CLS] must not give the same"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 30)), min_size=1, max_size=120, unique=True
    ),
    st.integers(1, 9),
)
def test_every_pair_is_in_one_block_once(found: list[tuple[int, int]], at_once: int) -> None:
    pairs = np.array(found)
    lengths = np.random.default_rng(0).integers(3, 35, 31)
    seen: list[int] = []
    images: list[int] = []
    for numbers, blocks in by_images(pairs, lengths.tolist(), at_once):
        images.extend(numbers.tolist())
        for block in blocks:
            assert block.texts.shape[0] * block.texts.shape[1] <= max(at_once, 1)
            wanted = block.pairs >= 0
            assert len(block.pairs) == len(numbers)
            rows, _ = np.nonzero(wanted)
            np.testing.assert_array_equal(pairs[block.pairs[wanted], 0], numbers[rows])
            np.testing.assert_array_equal(pairs[block.pairs[wanted], 1], block.texts[wanted])
            seen.extend(block.pairs[wanted].tolist())
    assert sorted(seen) == list(range(len(pairs)))
    assert len(images) == len(set(images)), "an image's keys and values are computed once"


def test_relevance_finds_what_the_match_rests_on() -> None:
    """The map of a word peaks within the thing it names, where chance would find it in 1 of 6."""
    encoder = open_encoder("vlre-tiny", device="cpu", dtype="float32")
    found = []
    for index in range(40):
        world = world_at(12, index)
        thing = world.things[0]
        if thing.pose not in ("stand", "fly"):
            continue
        pixels = encoder.preprocessor.pixels(draw(world))
        tokens = encoder.encode_images(pixels[None], ["tokens"])["tokens"][0]
        words = encoder.matcher().relevance(tokens, f"A {thing.kind}.")
        assert [word for word, _ in words] == ["a", thing.kind]
        seen = words[1][1]
        assert (seen >= 0).all()
        y, x = (np.array(np.unravel_index(seen.argmax(), seen.shape)) + 0.5) / len(seen)
        wide, high = thing.height / 2, thing.height
        found.append(abs(x - thing.x) <= wide and thing.base - high <= y <= thing.base)
    assert len(found) > 20
    assert np.mean(found) > 0.6


def test_a_model_that_looks_through_queries_says_that_it_cannot_tell(tmp_path: Path) -> None:
    encoder = open_encoder(str(tiny_blip2.save_blip2(tmp_path)), device="cpu", dtype="float32")
    with pytest.raises(UsageError, match="through a Q-Former"):
        encoder.matcher().relevance(np.zeros((5, 8), np.float32), "a dog")
