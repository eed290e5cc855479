"""BLIP through an imported checkpoint against the numbers of the authors' own code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from transformers import BlipForConditionalGeneration

from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.blip.encoder import BlipEncoder
from retrieval_engine.models.device import normalized_pixels
from tests.golden import GOLDEN, images, import_golden

GOLD = GOLDEN["blip"]
STATES, EMBEDS, CATCHES_EPS = 1e-4, 5e-6, 1e-5
FEATURES = ["itc", "pooled", "tokens"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_golden("blip/retrieval", tmp_path_factory.mktemp("blip") / "retrieval")


@pytest.fixture
def encoder(directory: Path) -> BlipEncoder:
    return BlipEncoder(resolve(str(directory)), device="cpu", dtype="float32")


def pixels(encoder: BlipEncoder) -> NDArray[np.uint8]:
    return np.stack([encoder.preprocessor.pixels(image) for image in images()])


def off(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def itm_logits(encoder: BlipEncoder, first_token: int) -> NDArray[np.float32]:
    """(12, 20, 2) logits of every pair, from cached vision states."""
    tokens = torch.from_numpy(encoder.encode_images(pixels(encoder), ["tokens"])["tokens"])
    texts = encoder.encode_texts(GOLD.captions, ["token_ids", "token_mask"])
    ids = torch.from_numpy(texts["token_ids"].astype(np.int64))
    ids[:, 0] = first_token
    mask = torch.from_numpy(texts["token_mask"].astype(np.int64))
    rows = []
    with torch.inference_mode():
        for states in tokens:
            out = encoder.model.text_encoder(
                input_ids=ids,
                attention_mask=mask,
                encoder_hidden_states=states.expand(len(ids), -1, -1),
            ).last_hidden_state[:, 0]
            rows.append(encoder.model.itm_head(out).numpy())
    return np.stack(rows)


def test_pixels_are_the_authors(encoder: BlipEncoder) -> None:
    x = normalized_pixels(pixels(encoder), encoder.preprocessor, encoder.device).numpy()
    assert off(x, GOLD["pixel_values"]) <= 1e-6


def test_token_ids_and_masks_are_the_authors(encoder: BlipEncoder) -> None:
    found = encoder.encode_texts(GOLD.captions, ["token_ids", "token_mask"])
    np.testing.assert_array_equal(found["token_ids"], GOLD["input_ids"])
    np.testing.assert_array_equal(found["token_mask"], GOLD["attention_mask"])


def test_image_features_are_the_authors(encoder: BlipEncoder) -> None:
    found = encoder.encode_images(pixels(encoder), FEATURES)
    assert off(found["tokens"], GOLD["vision_last_hidden_state"]) < CATCHES_EPS
    assert off(found["pooled"], GOLD["vision_last_hidden_state"][:, 0]) < CATCHES_EPS
    assert off(found["itc"][:, 0], GOLD["image_embeds"]) < EMBEDS


def test_text_features_are_the_authors(encoder: BlipEncoder) -> None:
    found = encoder.encode_texts(GOLD.captions, ["itc", "pooled"])
    assert off(found["pooled"], GOLD["text_last_hidden_state"][:, 0]) < STATES
    assert off(found["itc"][:, 0], GOLD["text_embeds"]) < EMBEDS
    image = encoder.encode_images(pixels(encoder), ["itc"])["itc"][:, 0]
    assert off(image @ found["itc"][:, 0].T, GOLD["itc_sim"]) < EMBEDS


def test_itm_logits_are_the_authors_with_enc(encoder: BlipEncoder) -> None:
    assert encoder.enc_token_id == 2001
    assert off(itm_logits(encoder, encoder.enc_token_id), GOLD["itm_logits_enc"]) < STATES


def test_trap_cls_as_first_token_moves_itm(encoder: BlipEncoder) -> None:
    with_cls = itm_logits(encoder, 101)
    assert off(with_cls, GOLD["itm_logits_cls"]) < STATES, "what transformers' forward does"
    moved = torch.from_numpy(with_cls).softmax(-1)[..., 1].numpy() - GOLD["itm_prob_enc"]
    assert np.abs(moved).max() > 0.2


@pytest.mark.parametrize("k", [8, 12])
def test_evaluation_scores_are_the_authors(encoder: BlipEncoder, k: int) -> None:
    image = encoder.encode_images(pixels(encoder), ["itc"])["itc"][:, 0]
    text = encoder.encode_texts(GOLD.captions, ["itc"])["itc"][:, 0]
    itc = image @ text.T
    both = itc + itm_logits(encoder, encoder.enc_token_id)[..., 1]
    for scores, cosines, name in ((both, itc, "i2t"), (both.T, itc.T, "t2i")):
        kept = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        matrix = np.full_like(scores, -100)
        np.put_along_axis(matrix, kept, np.take_along_axis(scores, kept, 1), 1)
        expected = GOLD[f"score_{name}_k{k}"]
        np.testing.assert_array_equal(matrix == -100, expected == -100)
        assert off(matrix, expected) < STATES


def test_at_another_image_size_the_position_embedding_is_interpolated(tmp_path: Path) -> None:
    directory = import_golden("blip/retrieval", tmp_path / "at96", image_size=96)
    encoder = BlipEncoder(resolve(str(directory)), device="cpu", dtype="float32")
    stored = encoder.model.vision_model.embeddings.position_embedding.detach().numpy()
    assert off(stored, GOLD["pos_embed_96"]) < 1e-6
    assert encoder.preprocessor.image_size == 96
    found = encoder.encode_images(pixels(encoder), ["itc"])["itc"][:, 0]
    assert off(found, GOLD["image_embeds_96"]) < EMBEDS
    text = encoder.encode_texts(GOLD.captions, ["itc"])["itc"][:, 0]
    assert off(found @ text.T, GOLD["itc_sim_96"]) < EMBEDS


def test_trap_other_heads_load_in_silence_and_move_everything(encoder: BlipEncoder) -> None:
    for module in encoder.model.modules():
        if hasattr(module, "num_attention_heads"):
            module.num_attention_heads, module.attention_head_size = 8, 8
    texts = encoder.encode_texts(GOLD.captions, ["itc"])["itc"][:, 0]
    assert off(texts, GOLD["text_embeds"]) > 1e-2
    for layer in encoder.model.vision_model.encoder.layers:
        layer.self_attn.num_heads = 6
    image = encoder.encode_images(pixels(encoder), ["itc"])["itc"][:, 0]
    assert off(image, GOLD["image_embeds"]) > 1e-2


def test_trap_transformers_eps_moves_vision_states(encoder: BlipEncoder) -> None:
    norms = [m for m in encoder.model.vision_model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    for norm in norms:
        norm.eps = 1e-5
    found = encoder.encode_images(pixels(encoder), ["tokens"])
    assert off(found["tokens"], GOLD["vision_last_hidden_state"]) > 5 * CATCHES_EPS


def test_trap_the_pooler_normalises_twice(encoder: BlipEncoder) -> None:
    x = normalized_pixels(pixels(encoder), encoder.preprocessor, encoder.device)
    with torch.inference_mode():
        pooled = encoder.model.vision_model(pixel_values=x).pooler_output
        embeds = normalize(encoder.model.vision_proj(pooled), dim=-1).numpy()
    assert off(embeds, GOLD["image_embeds"]) > 1e-2


def test_trap_a_missing_mask_moves_text_embeddings(encoder: BlipEncoder) -> None:
    ids = torch.from_numpy(GOLD["input_ids"])
    with torch.inference_mode():
        states = encoder.model.text_encoder(input_ids=ids).last_hidden_state[:, 0]
        embeds = normalize(encoder.model.text_proj(states), dim=-1).numpy()
    assert off(embeds, GOLD["text_embeds"]) > 0.1


@pytest.fixture
def captioner(tmp_path: Path) -> BlipForConditionalGeneration:
    directory = import_golden("blip/caption", tmp_path / "caption")
    return BlipForConditionalGeneration.from_pretrained(directory).eval()


def lm_losses(model: BlipForConditionalGeneration) -> NDArray[np.float32]:
    """(20,) loss of each caption alone with its image."""
    losses = []
    for j, image in enumerate(GOLD["txt2img"]):
        keep = int(GOLD["lm_attention_mask"][j].sum())
        ids, labels = (
            torch.from_numpy(GOLD[n][j : j + 1, :keep]) for n in ("lm_input_ids", "lm_labels")
        )
        x = torch.from_numpy(GOLD["pixel_values"][image : image + 1])
        with torch.inference_mode():
            losses.append(model(pixel_values=x, input_ids=ids, labels=labels).loss.item())
    return np.array(losses, dtype=np.float32)


def test_caption_losses_and_vision_states_are_the_authors(
    captioner: BlipForConditionalGeneration,
) -> None:
    x = torch.from_numpy(GOLD["pixel_values"])
    with torch.inference_mode():
        states = captioner.vision_model(pixel_values=x).last_hidden_state.numpy()
    assert off(states, GOLD["cap_vision_last_hidden_state"]) < CATCHES_EPS
    assert off(lm_losses(captioner), GOLD["lm_loss"]) < STATES


def test_trap_no_label_smoothing_moves_the_loss(captioner: BlipForConditionalGeneration) -> None:
    assert captioner.text_decoder.label_smoothing == 0.1
    captioner.text_decoder.label_smoothing = 0.0
    assert off(lm_losses(captioner), GOLD["lm_loss"]) > 0.1


@pytest.mark.parametrize("setting", ["greedy_20_5", "greedy_30_1"])
def test_greedy_captions_are_the_authors(
    captioner: BlipForConditionalGeneration, setting: str
) -> None:
    kwargs = GOLD.expected["generation"][setting]["kwargs"]
    prompt = torch.tensor([[2000, 146, 288, 210, 102]]).repeat(12, 1)  # [DEC] a picture of [SEP]
    found = captioner.generate(
        pixel_values=torch.from_numpy(GOLD["pixel_values"]),
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        **kwargs,
    ).numpy()
    expected = GOLD[f"gen_{setting}"]
    for ours, theirs in zip(found, expected, strict=True):
        end = int((theirs != 0).sum())
        np.testing.assert_array_equal(ours[:end], theirs[:end])
