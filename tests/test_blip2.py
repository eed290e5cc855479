"""The BLIP-2 family against transformers' own forward on tiny random checkpoints."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

from retrieval_engine import open_encoder
from retrieval_engine.errors import CheckpointInvalid, UsageError
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.blip2 import part_of
from retrieval_engine.models.blip2.encoder import Blip2Encoder
from retrieval_engine.models.blip2.encoder import open_encoder as open_blip2
from retrieval_engine.models.blip2.language import MAX_TOKENS, Blip2LanguageEncoder
from retrieval_engine.models.blip2.language import part_of as language_part_of
from retrieval_engine.models.blip2.parts import LN_VISION_EPS
from retrieval_engine.models.device import coarse_float32, normalized_pixels
from retrieval_engine.records import Modality
from tests import tiny, tiny_blip2

TEXTS = ["a dog on grass", "A red car, on the street at night.", "two birds", "a man and a woman"]
FEATURES = ["itc", "pooled", "tokens", "queries"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip2.save_blip2(tmp_path_factory.mktemp("blip2"))


@pytest.fixture
def encoder(checkpoint: Path) -> Blip2Encoder:
    return retrieval(checkpoint)


def retrieval(checkpoint: Path, dtype: str = "float32") -> Blip2Encoder:
    found = open_blip2(resolve(str(checkpoint)), device="cpu", dtype=dtype)
    assert isinstance(found, Blip2Encoder)
    return found


def pixels(n: int) -> NDArray[np.uint8]:
    shape = (n, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def plain(checkpoint: Path) -> Blip2ForImageTextRetrieval:
    """transformers' model, with the eps that LAVIS's `ln_vision` has."""
    model = Blip2ForImageTextRetrieval.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model.vision_model.post_layernorm.eps = LN_VISION_EPS
    return model


def test_itc_and_itm_equal_the_model_s_own_forward(checkpoint: Path, encoder: Blip2Encoder) -> None:
    images = pixels(3)
    x = normalized_pixels(images, encoder.preprocessor, encoder.device)
    found = encoder.encode_images(images, FEATURES)
    texts = encoder.encode_texts(TEXTS, ["itc"])["itc"][:, 0]
    scores = np.einsum("iqd,td->itq", found["itc"], texts).max(axis=-1)
    pairs = np.array([(i, j) for i in range(3) for j in range(len(TEXTS))])
    logits = encoder.matcher().score_pairs(lambda rows: found["tokens"][rows], TEXTS, pairs)
    model = plain(checkpoint)
    for j, ids in enumerate(encoder.tokenize(TEXTS)):
        words = {"input_ids": torch.tensor([ids] * 3)}
        words["attention_mask"] = torch.ones_like(words["input_ids"])
        with torch.no_grad():
            itc = model(pixel_values=x, **words).logits_per_image[:, 0].numpy()
            itm = model(pixel_values=x, **words, use_image_text_matching_head=True)
        np.testing.assert_allclose(scores[:, j], itc, atol=1e-5)
        expected = itm.logits_per_image[:, 1].numpy()
        np.testing.assert_allclose(logits.reshape(3, -1)[:, j], expected, atol=1e-5)
    assert np.ptp(found["itc"], axis=0).max() > 0.05, "images must differ to the model"
    assert np.ptp(found["itc"], axis=1).max() > 0.05, "queries must differ to the model"


def test_pooled_is_the_mean_of_the_queries(encoder: Blip2Encoder) -> None:
    images = encoder.encode_images(pixels(2), FEATURES)
    np.testing.assert_allclose(images["queries"].mean(axis=1), images["pooled"], atol=1e-6)


def test_only_what_is_needed_is_loaded(encoder: Blip2Encoder) -> None:
    encoder.encode_texts(TEXTS, ["itc"])
    assert "vision" not in vars(encoder), "words need no vision tower"
    encoder.encode_images(pixels(1), ["tokens"])
    assert "vision" in vars(encoder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_the_tower_s_alone(
    checkpoint: Path, encoder: Blip2Encoder, dtype: str
) -> None:
    half = retrieval(checkpoint, dtype)
    a = encoder.encode_images(pixels(4), ["itc"])["itc"]
    b = half.encode_images(pixels(4), ["itc", "tokens"])
    assert (a * b["itc"]).sum(-1).min() > 0.99
    assert {p.dtype for p in half.vision.parameters()} == {getattr(torch, dtype)}
    assert {p.dtype for p in half.queries.parameters()} == {torch.float32}
    exact = encoder.encode_texts(TEXTS, ["itc"])["itc"]
    np.testing.assert_array_equal(half.encode_texts(TEXTS, ["itc"])["itc"], exact)
    assert half.spec.fingerprint != encoder.spec.fingerprint
    pairs = np.array([(i, j) for i in range(4) for j in range(4)])
    tokens = encoder.encode_images(pixels(4), ["tokens"])["tokens"]
    close = half.matcher().score_pairs(lambda rows: b["tokens"][rows], TEXTS, pairs)
    full = encoder.matcher().score_pairs(lambda rows: tokens[rows], TEXTS, pairs)
    assert abs(close - full).max() < 0.1 * np.ptp(full) + 0.02


def test_every_tensor_is_of_a_part(checkpoint: Path, tmp_path: Path) -> None:
    parts = {name: part_of(name) for name in load_file(checkpoint / "model.safetensors")}
    assert set(parts.values()) == {"vision", "image", "shared", "text", "itm"}
    layer = "qformer.encoder.layer.0"
    assert parts[f"{layer}.attention.output.dense.weight"] == "shared"
    assert parts[f"{layer}.attention.attention.query.bias"] == "shared"
    assert parts[f"{layer}.crossattention.output.dense.weight"] == "image"
    assert parts[f"{layer}.output_query.dense.weight"] == "image"
    assert parts[f"{layer}.output.dense.weight"] == "text"
    t5 = load_file(tiny_blip2.save_blip2_t5(tmp_path) / "model.safetensors")
    left = {name for name in t5 if language_part_of(name) is None}
    starts = ("language_projection.", "language_model.decoder.", "language_model.lm_head.")
    assert left
    assert all(name.startswith(starts) for name in left)


@pytest.mark.parametrize(
    ("tensor", "stale"),
    [
        ("itm_head.weight", set()),
        ("text_projection.weight", {Modality.CAPTIONS}),
        ("qformer.encoder.layer.1.output.dense.weight", {Modality.CAPTIONS}),
        ("vision_projection.weight", {Modality.IMAGES}),
        ("qformer.encoder.layer.0.crossattention.attention.key.weight", {Modality.IMAGES}),
        ("qformer.encoder.layer.1.attention.attention.key.weight", set(Modality)),
    ],
)
def test_a_changed_tensor_makes_stale_what_depends_on_it(
    checkpoint: Path, encoder: Blip2Encoder, tmp_path: Path, tensor: str, stale: set[Modality]
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[tensor] = tensors[tensor] + 0.01
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    other = retrieval(tmp_path)
    assert other.spec.fingerprint != encoder.spec.fingerprint
    changed = {m for m in Modality if other.features(m)["itc"] != encoder.features(m)["itc"]}
    assert changed == stale
    tower = [e.features(Modality.IMAGES)["tokens"] for e in (other, encoder)]
    assert tower[0] == tower[1]


def test_another_image_size_leaves_captions_as_they_are(
    encoder: Blip2Encoder, tmp_path: Path
) -> None:
    larger = retrieval(tiny_blip2.save_blip2(tmp_path, image_size=2 * tiny.IMAGE_SIZE))
    for spec in (larger.spec, encoder.spec):
        assert {"vision", "image", "shared", "text", "itm"} == spec.weights.keys()
    moved = larger.spec.from_json({**larger.spec.to_json(), "weights": dict(encoder.spec.weights)})
    assert moved.part("shared", "text") == encoder.spec.part("shared", "text")
    assert moved.part("vision") != encoder.spec.part("vision")


def test_a_checkpoint_without_its_text_side_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(checkpoint / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if ".intermediate." not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointInvalid, match="lacks 4 parameters"):
        open_encoder(str(tmp_path), device="cpu")


# --- with a language model --------------------------------------------------------------------

SAVERS = {"opt": tiny_blip2.save_blip2_opt, "t5": tiny_blip2.save_blip2_t5}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_language_checkpoints_give_means_of_hidden_states(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    encoder = open_encoder(str(save(tmp_path)), device="cpu", dtype="float32")
    assert isinstance(encoder, Blip2LanguageEncoder)
    model = Blip2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    model.vision_model.post_layernorm.eps = LN_VISION_EPS
    images = pixels(3)
    x = normalized_pixels(images, encoder.preprocessor, encoder.device)
    with torch.no_grad():
        queries = model.get_image_features(x).qformer_outputs.last_hidden_state.numpy()
    found = encoder.encode_images(images, ["pooled", "queries", "tokens"])
    np.testing.assert_allclose(found["queries"], queries, atol=1e-5)
    np.testing.assert_allclose(found["pooled"], queries.mean(axis=1), atol=1e-5)
    texts = encoder.encode_texts(TEXTS, ["pooled"])["pooled"]
    language = model.language_model
    inner = language.encoder if hasattr(language, "encoder") else language.model
    for text, row in zip(TEXTS, texts, strict=True):
        ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = inner(input_ids=ids).last_hidden_state[0].numpy()
        np.testing.assert_allclose(row, states.mean(axis=0), atol=1e-5)
    assert np.ptp(texts, axis=0).max() > 0.05, "texts must differ to the model"


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_language_checkpoints_have_no_itc_and_load_no_generator(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    encoder = open_encoder(str(save(tmp_path)), device="cpu", dtype="float32")
    assert isinstance(encoder, Blip2LanguageEncoder)
    with pytest.raises(UsageError, match="emits no itc for images; it has pooled") as caught:
        encoder.encode_images(pixels(1), ["itc"])
    assert "blip2-itm-vit-g" in caught.value.hint
    with pytest.raises(UsageError, match="emits no itc for captions; it has pooled"):
        encoder.encode_texts(TEXTS, ["itc"])
    assert "language" not in vars(encoder)
    long = encoder.encode_texts(["dog " * 200, "dog " * (MAX_TOKENS - 2)], ["pooled"])["pooled"]
    np.testing.assert_array_equal(long[0], long[1])
    names = [name for name, _ in encoder.language.named_parameters()]
    assert not [n for n in names if "lm_head" in n or n.startswith("language_model.decoder.")]


def test_float32_is_coarse_beside_half_precision_on_cuda_alone() -> None:
    before = torch.get_float32_matmul_precision()
    for device, dtype, expected in (
        ("cuda", torch.float16, "high"),
        ("cuda", torch.float32, before),
        ("cpu", torch.bfloat16, before),
    ):
        with coarse_float32(torch.device(device), dtype):
            assert torch.get_float32_matmul_precision() == expected
        assert torch.get_float32_matmul_precision() == before
