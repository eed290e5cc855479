"""The BLIP family against transformers' own forward on a tiny random checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from retrieval_engine import open_encoder
from retrieval_engine.errors import CheckpointInvalid, CheckpointNotFound
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.blip.attention import use_eager_attention, use_fused_attention
from retrieval_engine.models.blip.encoder import BlipEncoder
from retrieval_engine.models.device import normalized_pixels
from retrieval_engine.records import Modality
from tests import tiny

TEXTS = ["a dog on grass", "A red car, on the street at night.", "two birds", "a man and a woman"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> BlipEncoder:
    return BlipEncoder(resolve(str(checkpoint)), device="cpu", dtype="float32")


def pixels(n: int, side: int = tiny.IMAGE_SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_itc_equals_the_model_s_own_forward(checkpoint: Path, encoder: BlipEncoder) -> None:
    model = BlipForImageTextRetrieval.from_pretrained(checkpoint).eval()
    images = pixels(3)
    processor = BlipImageProcessorPil(size={"height": tiny.IMAGE_SIZE, "width": tiny.IMAGE_SIZE})
    x = processor([Image.fromarray(p) for p in images], return_tensors="pt")["pixel_values"]
    words = tiny.tokenizer()(TEXTS[:1] * 3, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=x, use_itm_head=False, **words).itm_score.numpy()
    ours = encoder.encode_images(images, ["itc"])["itc"][:, 0]
    texts = encoder.encode_texts(TEXTS[:1] * 3, ["itc"])["itc"][:, 0]
    np.testing.assert_allclose(ours @ texts.T, expected, atol=1e-5)
    assert np.ptp(ours, axis=0).max() > 0.05, "the images must not all look the same to the model"


def test_tokens_and_pooled_are_the_final_states_and_their_cls(encoder: BlipEncoder) -> None:
    found = encoder.encode_images(pixels(2), ["pooled", "tokens"])
    shapes = encoder.features(Modality.IMAGES)
    assert found["tokens"].shape == (2, *shapes["tokens"].shape)
    np.testing.assert_array_equal(found["tokens"][:, 0], found["pooled"])
    assert abs(found["tokens"].mean(axis=-1)).max() < 1e-5  # LayerNorm with untrained weights


def test_fused_attention_equals_eager_in_both_towers(checkpoint: Path) -> None:
    model = BlipForImageTextRetrieval.from_pretrained(checkpoint).eval()
    words = tiny.tokenizer()(TEXTS, return_tensors="pt", padding=True)
    x = torch.randn(4, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    with torch.no_grad():
        eager = model(pixel_values=x, **words)
        use_fused_attention(model)
        fused = model(pixel_values=x, **words)
        use_eager_attention(model)
        again = model(pixel_values=x, **words)
    torch.testing.assert_close(fused.itm_score, eager.itm_score, atol=1e-5, rtol=0)
    torch.testing.assert_close(fused.last_hidden_state, eager.last_hidden_state, atol=1e-5, rtol=0)
    assert torch.equal(again.itm_score, eager.itm_score)


def test_half_precision_is_close_and_has_its_own_fingerprint(
    checkpoint: Path, encoder: BlipEncoder
) -> None:
    half = BlipEncoder(resolve(str(checkpoint)), device="cpu", dtype="bfloat16")
    a = encoder.encode_images(pixels(4), ["itc"])["itc"]
    b = half.encode_images(pixels(4), ["itc"])["itc"]
    assert (a * b).sum(-1).min() > 0.995
    assert half.spec.fingerprint != encoder.spec.fingerprint


def test_token_ids_are_cleaned_cut_and_padded(encoder: BlipEncoder) -> None:
    found = encoder.encode_texts(["A DOG!", "dog " * 60], ["token_ids", "token_mask"])
    vocabulary = tiny.tokenizer().get_vocab()
    expected = [vocabulary[t] for t in ("[CLS]", "a", "dog", "[SEP]", "[PAD]")]
    assert found["token_ids"][0, :5].tolist() == expected
    assert found["token_mask"].sum(axis=1).tolist() == [4, 32]  # 30 words, [CLS], [SEP]


def test_fingerprint_follows_weights_not_names(checkpoint: Path, tmp_path: Path) -> None:
    first = open_encoder(str(checkpoint), device="cpu", dtype="float32").spec
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in checkpoint.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert (
        open_encoder(str(moved), device="cpu", dtype="float32").spec.fingerprint
        == first.fingerprint
    )
    other = tiny.save_blip(tmp_path / "other", seed=1)
    second = open_encoder(str(other), device="cpu", dtype="float32").spec
    assert second.fingerprint != first.fingerprint
    assert second.part("vision") != first.part("vision")


def test_a_changed_itm_head_leaves_the_features_current(checkpoint: Path, tmp_path: Path) -> None:
    model = BlipForImageTextRetrieval.from_pretrained(checkpoint)
    torch.nn.init.ones_(model.itm_head.weight)
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    before = open_encoder(str(checkpoint), device="cpu", dtype="float32")
    after = open_encoder(str(tmp_path), device="cpu", dtype="float32")
    assert before.spec.fingerprint != after.spec.fingerprint
    for modality in Modality:
        assert before.features(modality) == after.features(modality)


def test_wrong_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="not a directory"):
        open_encoder("no-such-model")
    with pytest.raises(CheckpointInvalid, match=r"without config\.json"):
        open_encoder(str(tmp_path))
    captioner = tiny.save_blip_captioner(tmp_path / "captioner")
    with pytest.raises(CheckpointInvalid, match=r"lacks .* parameters"):
        open_encoder(str(captioner))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointInvalid, match="'bert'"):
        open_encoder(str(tmp_path))


def test_a_truncated_weight_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        data = file.read_bytes()
        cut = len(data) // 2 if file.suffix == ".safetensors" else len(data)
        (tmp_path / file.name).write_bytes(data[:cut])
    with pytest.raises(CheckpointInvalid):
        open_encoder(str(tmp_path))


def test_an_unreachable_hub_fails_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointNotFound, match="cannot be reached"):
        open_encoder("Salesforce/blip-itm-base-coco")


def test_a_batch_that_does_not_fit_is_halved(
    encoder: BlipEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoder.encode_images(pixels(5), ["itc", "pooled"])
    tower, sizes = encoder.vision_tower, []
    monkeypatch.setattr(encoder, "most_images", encoder.most_images)  # as before, afterwards

    def small(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("too large")
        return tower(x)

    monkeypatch.setattr(encoder, "vision_tower", small)
    halved = encoder.encode_images(pixels(5), ["itc", "pooled"])
    assert sizes == [5, 2, 2, 1]
    encoder.encode_images(pixels(4), ["itc"])
    assert sizes[4:] == [2, 2], "what did not fit once is not tried again"
    for name, array in whole.items():
        np.testing.assert_allclose(halved[name], array, atol=1e-5)


def test_bfloat16_states_reach_numpy(encoder: BlipEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = encoder.vision_tower
    monkeypatch.setattr(encoder, "vision_tower", lambda x: tower(x).bfloat16())
    tokens = encoder.encode_images(pixels(2), ["tokens"])["tokens"]
    assert tokens.dtype == np.float32
    expected = tower(normalized_pixels(pixels(2), encoder.preprocessor, encoder.device))
    np.testing.assert_allclose(tokens, expected.detach().numpy(), atol=0.05)
