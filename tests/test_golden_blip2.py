"""BLIP-2 through an imported checkpoint against the numbers of LAVIS's own code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from retrieval_engine import open_encoder
from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.blip2.cross_encoder import Blip2CrossEncoder
from retrieval_engine.models.blip2.encoder import Blip2Encoder
from retrieval_engine.models.blip2.encoder import open_encoder as open_blip2
from retrieval_engine.models.checksums import CHECKSUMS
from retrieval_engine.models.device import normalized_pixels
from retrieval_engine.models.text import pre_caption
from tests.golden import GOLDEN, images, import_golden

GOLD = GOLDEN["blip2"]
STATES, EMBEDS = 1e-4, 1e-5
CATCHES_EPS = 1e-5  # on vision states, seen 1.4e-6


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_golden("blip2", tmp_path_factory.mktemp("blip2") / "retrieval")


@pytest.fixture
def encoder(directory: Path) -> Blip2Encoder:
    found = open_blip2(resolve(str(directory)), device="cpu", dtype="float32")
    assert isinstance(found, Blip2Encoder)
    return found


def pixels(encoder: Blip2Encoder) -> NDArray[np.uint8]:
    return np.stack([encoder.preprocessor.pixels(image) for image in images()])


def tokens(encoder: Blip2Encoder) -> NDArray[np.float32]:
    found: NDArray[np.float32] = encoder.encode_images(pixels(encoder), ["tokens"])["tokens"]
    return found


def off(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def itm_logits(encoder: Blip2Encoder, ids: list[list[int]]) -> NDArray[np.float32]:
    """(12, texts, 2) logits of every image with every text, each text alone and unpadded."""
    cross = Blip2CrossEncoder(encoder.queries)
    with torch.inference_mode():
        seen = cross.keys_values(torch.from_numpy(tokens(encoder)))
        columns = []
        for text in ids:
            repeated = torch.tensor(text).expand(12, 1, len(text))
            columns.append(cross.logits(seen, repeated, torch.ones_like(repeated))[:, 0])
    found: NDArray[np.float32] = torch.stack(columns, dim=1).numpy()
    return found


def every_pair(encoder: Blip2Encoder) -> NDArray[np.float32]:
    """(12, 20) match logits through the matcher, as re-ranking runs it."""
    states = tokens(encoder)
    pairs = np.array([(i, j) for i in range(12) for j in range(20)])
    found = encoder.matcher().score_pairs(lambda rows: states[rows], GOLD.captions, pairs)
    return found.reshape(12, 20)


def test_pixels_ids_and_masks_are_the_authors(encoder: Blip2Encoder) -> None:
    x = normalized_pixels(pixels(encoder), encoder.preprocessor, encoder.device).numpy()
    assert off(x, GOLD["pixel_values"]) <= 1e-6
    found = encoder.encode_texts(GOLD.captions, ["token_ids", "token_mask"])
    np.testing.assert_array_equal(found["token_ids"], GOLD["input_ids"])
    np.testing.assert_array_equal(found["token_mask"], GOLD["attention_mask"])


def test_image_features_are_the_authors(encoder: Blip2Encoder) -> None:
    found = encoder.encode_images(pixels(encoder), ["itc", "pooled", "tokens", "queries"])
    assert off(found["tokens"], GOLD["vision_ln_hidden_state"]) < CATCHES_EPS
    assert off(found["queries"], GOLD["query_output"]) < STATES
    assert off(found["pooled"], GOLD["query_output"].mean(axis=1)) < STATES
    assert off(found["itc"], GOLD["image_embeds"]) < EMBEDS


def test_text_features_are_the_authors(encoder: Blip2Encoder) -> None:
    found = encoder.encode_texts(GOLD.captions, ["itc", "pooled"])
    assert off(found["pooled"], GOLD["text_cls"]) < STATES
    assert off(found["itc"][:, 0], GOLD["text_embeds"]) < EMBEDS


def test_itc_score_is_the_maximum_over_queries(encoder: Blip2Encoder) -> None:
    image = encoder.encode_images(pixels(encoder), ["itc"])["itc"]
    text = encoder.encode_texts(GOLD.captions, ["itc"])["itc"][:, 0]
    by_query = np.einsum("iqd,td->itq", image, text)
    assert off(by_query.max(axis=-1), GOLD["itc_sim"]) < EMBEDS
    np.testing.assert_array_equal(by_query.argmax(axis=-1), GOLD["itc_argmax_query"])
    assert off(by_query.mean(axis=-1), GOLD["itc_sim"]) > 0.05, "a mean is another function"


def test_matcher_logits_are_the_authors(encoder: Blip2Encoder) -> None:
    assert off(every_pair(encoder), GOLD["itm_logit_pos"]) < STATES


def test_both_logits_are_the_authors_where_text_is_cut_at_32(encoder: Blip2Encoder) -> None:
    ids = encoder.tokenizer(GOLD.expected["text"], truncation=True, max_length=32)["input_ids"]
    logits = itm_logits(encoder, ids)
    assert off(logits, GOLD["itm_logits_len32"]) < STATES
    probabilities = torch.from_numpy(logits).softmax(-1)[..., 1].numpy()
    assert off(probabilities, GOLD["itm_prob_len32"]) < EMBEDS


def test_query_states_of_a_pair_are_the_authors(encoder: Blip2Encoder) -> None:
    cross, states = Blip2CrossEncoder(encoder.queries), torch.from_numpy(tokens(encoder))
    for j, text in enumerate(GOLD.expected["text"]):
        image = int(GOLD["txt2img"][j])
        ids = torch.tensor(encoder.tokenizer(text)["input_ids"])[None, None]  # not cut
        with torch.inference_mode():
            seen = cross.keys_values(states[image : image + 1])
            found = cross.query_states(seen, ids, torch.ones_like(ids))[0, 0].numpy()
        assert off(found, GOLD["multimodal_embeds"][j]) < STATES


@pytest.mark.parametrize("k", [8, 12])
def test_evaluation_scores_are_the_authors(encoder: Blip2Encoder, k: int) -> None:
    image = encoder.encode_images(pixels(encoder), ["itc"])["itc"]
    text = encoder.encode_texts(GOLD.captions, ["itc"])["itc"][:, 0]
    itc = np.einsum("iqd,td->itq", image, text).max(axis=-1)
    both = itc + every_pair(encoder)
    assert off(both, GOLD["score_full"]) < STATES
    for scores, cosines, name in ((both, itc, "i2t"), (both.T, itc.T, "t2i")):
        kept = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        matrix = np.full_like(scores, -100)
        np.put_along_axis(matrix, kept, np.take_along_axis(scores, kept, 1), 1)
        np.testing.assert_array_equal(matrix == -100, GOLD[f"score_{name}_k{k}"] == -100)
        assert off(matrix, GOLD[f"score_{name}_k{k}"]) < STATES


# --- traps: each wrong setting runs, and moves the numbers --------------------------------------


def test_trap_ln_vision_has_another_eps_than_the_tower(encoder: Blip2Encoder) -> None:
    tower = encoder.vision.vision_model
    assert tower.post_layernorm.eps == 1e-5
    assert {layer.layer_norm1.eps for layer in tower.encoder.layers} == {1e-6}
    expected = GOLD["vision_ln_hidden_state"].astype(np.float64)

    def scale() -> float:
        """How much larger the states are than the authors'; rounding averages out of it."""
        return float((tokens(encoder) * expected).sum() / (expected**2).sum()) - 1

    before = scale()
    tower.post_layernorm.eps = 1e-6
    assert abs(scale()) > 10 * abs(before)


def test_trap_eps_of_the_tower_s_norms(encoder: Blip2Encoder) -> None:
    for layer in encoder.vision.vision_model.encoder.layers:
        layer.layer_norm1.eps = layer.layer_norm2.eps = 1e-5
    assert off(tokens(encoder), GOLD["vision_ln_hidden_state"]) > CATCHES_EPS


def test_trap_a_bias_on_the_keys(encoder: Blip2Encoder) -> None:
    for layer in encoder.vision.vision_model.encoder.layers:
        query, key, value = layer.self_attn.qkv.bias.data.chunk(3)
        assert not key.any()
        layer.self_attn.qkv.bias.data = torch.cat((query, value, key))
    assert off(tokens(encoder), GOLD["vision_ln_hidden_state"]) > 0.01


def test_trap_a_q_former_that_reads_no_text_is_refused(directory: Path, tmp_path: Path) -> None:
    for file in directory.iterdir():
        if file.name != CHECKSUMS:  # else the change itself is refused
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["qformer_config"]["use_qformer_text_input"]  # transformers' default is False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointInvalid, match="use_qformer_text_input"):
        open_encoder(str(tmp_path), device="cpu")


def test_trap_other_heads_load_in_silence(encoder: Blip2Encoder) -> None:
    for module in encoder.queries.modules():
        if hasattr(module, "num_attention_heads"):
            module.num_attention_heads, module.attention_head_size, module.scaling = 8, 8, 8**-0.5
    text = encoder.encode_texts(GOLD.captions, ["itc"])["itc"][:, 0]
    assert off(text, GOLD["text_embeds"]) > 1e-2


def test_trap_there_is_no_enc_token(encoder: Blip2Encoder) -> None:
    ids = [[2000, *text[1:]] for text in encoder.tokenize(GOLD.captions)]
    assert off(itm_logits(encoder, ids)[..., 1], GOLD["itm_logit_pos"]) > 1e-3


def test_trap_softmax_comes_after_the_mean_and_once(encoder: Blip2Encoder) -> None:
    probabilities = torch.from_numpy(GOLD["itm_logits_len32"]).softmax(-1)
    assert off(probabilities.softmax(-1)[..., 1].numpy(), GOLD["itm_prob_len32"]) > 0.05


def test_trap_lavis_cuts_captions_at_50_words_not_30(encoder: Blip2Encoder) -> None:
    [long] = [text for text in GOLD.captions if len(text.split()) > 30]
    cut = encoder.tokenizer(pre_caption(long, 30))["input_ids"]
    assert encoder.tokenize([long])[0] != cut
    assert len(encoder.tokenize([long])[0]) == 35
