"""CLIP: its contract, its authors' numbers by transformers, and what it cannot do said at once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from retrieval_engine import Engine, open_encoder
from retrieval_engine.cli import main
from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models import Encoder
from retrieval_engine.models.clip.encoder import ClipEncoder
from retrieval_engine.models.clip.preprocess import ResizeAndCrop
from retrieval_engine.testing import EncoderContract

LETTERS = "abcdefghijklmnopqrstuvwxyz.,"
WORDS = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 77}
TEXTS = ["a dog", "a very long sentence " * 30, "", "two cats, on a roof."]


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A tiny CLIP of random weights, as the hub has them."""
    torch.manual_seed(seed)
    end = len(WORDS) - 1
    text = {**TEXT, "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    CLIPTokenizerFast(vocab=vocabulary, merges=[]).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


class TestClip(EncoderContract):
    def open(self, folder: Path) -> Encoder:
        return open_encoder(str(save_clip(folder)), device="cpu", dtype="float32")


def images() -> list[Image.Image]:
    """Odd sizes, wide and tall, smaller and larger than the model's."""
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (57, 33), (33, 101), (20, 31), (500, 375), (41, 32)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


def test_pixels_are_those_of_transformers() -> None:
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        do_rescale=False,
        do_normalize=False,
    )
    for image in images():
        [expected] = theirs(image, return_tensors="np")["pixel_values"]
        found = ResizeAndCrop(image_size=32).pixels(image)
        np.testing.assert_array_equal(found, expected.transpose(1, 2, 0))


def test_features_are_those_of_transformers(checkpoint: Path) -> None:
    encoder = open_encoder(str(checkpoint), device="cpu", dtype="float32")
    assert isinstance(encoder, ClipEncoder)
    model = CLIPModel.from_pretrained(checkpoint).eval()
    processor = CLIPImageProcessorPil.from_pretrained(checkpoint)
    tokenizer = CLIPTokenizerFast.from_pretrained(checkpoint)
    pixels = np.stack([encoder.preprocessor.pixels(image) for image in images()])
    with torch.inference_mode():
        read = processor(images(), return_tensors="pt")["pixel_values"]
        words = tokenizer(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
        whole = model(pixel_values=read, **words)
    found = encoder.encode_images(pixels, ["itc"])["itc"][:, 0]
    np.testing.assert_allclose(found, whole.image_embeds.numpy(), atol=2e-6)
    said = encoder.encode_texts(TEXTS, ["itc"])["itc"][:, 0]
    np.testing.assert_allclose(said, whole.text_embeds.numpy(), atol=2e-6)


def test_what_it_cannot_do_is_said_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    engine = Engine("scenes:6?seed=7", store=store, model=str(checkpoint))
    assert len(engine.search("a dog", 3)) == 3
    assert engine.evaluate().report.n_images == 6
    for command in (["search", "a dog", "-k", "4"], ["eval", "--recall"]):
        failed = CliRunner().invoke(main, [*command, "--store", store, "--rerank", "4"])
        assert failed.exit_code == 2
        assert f"Error: {checkpoint} has no matching head" in failed.stderr
        assert "re-ranking" not in failed.stderr
    own = CliRunner().invoke(main, ["caption", "--store", store, "--model", str(checkpoint)])
    assert own.exit_code == 1
    assert own.stderr.startswith("Error: no model of family clip writes captions\n")


@pytest.mark.parametrize(
    "other",
    [
        {"do_center_crop": False},
        {"resample": 2},
        {"size": {"height": 32, "width": 32}},
        {"crop_size": {"height": 24, "width": 32}},
        {"size": {"shortest_edge": 40}},
    ],
)
def test_pixels_that_are_made_in_another_way_are_refused(
    checkpoint: Path, tmp_path: Path, other: dict[str, object]
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | other))
    with pytest.raises(CheckpointInvalid, match=f"asks for {next(iter(other))}="):
        open_encoder(str(tmp_path), device="cpu")
