"""SigLIP and SigLIP 2: their contract, and transformers' own numbers, filling included."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip.tokenization_siglip import SiglipTokenizer
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

from retrieval_engine import Engine, open_encoder
from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models import Encoder
from retrieval_engine.models.siglip.encoder import SiglipEncoder
from retrieval_engine.testing import EncoderContract

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LENGTH = 16
TEXTS = ["a Dog, on grass!", "two cats " * 30, "", "A red car. (at night)", "snow"]
ROWS = 64


def pieces(folder: Path) -> Path:
    """A small model of sentence pieces, as SigLIP's files have one."""
    lines = folder / "lines.txt"
    lines.write_text("\n".join(["a dog on grass", "two cats", "a red car at night", "snow"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines),
        model_prefix=str(folder / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "spiece.model"


def save_siglip(folder: Path, version: int = 1) -> Path:
    """A tiny SigLIP of random weights, as the hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(version)
    text = {**TOWER, "vocab_size": ROWS, "max_position_embeddings": LENGTH, "projection_size": 32}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    if version == 1:
        SiglipTokenizer(str(pieces(folder)), model_max_length=LENGTH).save_pretrained(folder)
    else:
        words = [*"▁abcdefghijklmnopqrstuvwxyz.,!()", "▁d", "og"]
        special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
        vocab = {word: i for i, word in enumerate([*special, *words])}
        Siglip2Tokenizer(vocab=vocab, merges=[("▁", "d"), ("o", "g")]).save_pretrained(folder)
    resample = 3 if version == 1 else 2
    SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=resample).save_pretrained(
        folder
    )
    return folder


class TestSiglip(EncoderContract):
    def open(self, folder: Path) -> Encoder:
        return open_encoder(str(save_siglip(folder)), device="cpu", dtype="float32")


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (57, 33), (33, 101), (20, 31), (500, 375)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


@pytest.mark.parametrize("version", [1, 2])
def test_features_are_those_of_transformers(tmp_path: Path, version: int) -> None:
    folder = save_siglip(tmp_path, version)
    encoder = open_encoder(str(folder), device="cpu", dtype="float32")
    assert isinstance(encoder, SiglipEncoder)
    model = SiglipModel.from_pretrained(folder).eval()
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    kind = SiglipTokenizer if version == 1 else Siglip2Tokenizer
    theirs = kind.from_pretrained(folder)
    words = theirs(
        [text.lower() for text in TEXTS],
        padding="max_length",
        truncation=True,
        max_length=LENGTH,
        padding_side="right",
        return_tensors="pt",
    )["input_ids"]
    if version == 1:  # SigLIP 2's hub files end each text; the class alone does not
        assert encoder.tokenize(TEXTS) == words.tolist()
    words = torch.tensor(encoder.tokenize(TEXTS))
    assert words.shape == (len(TEXTS), LENGTH)
    assert ((words == theirs.eos_token_id).sum(1) >= 1).all()
    with torch.inference_mode():
        read = processor(images(), return_tensors="pt")["pixel_values"]
        whole = model(pixel_values=read, input_ids=words)
    pixels = np.stack([encoder.preprocessor.pixels(image) for image in images()])
    found = encoder.encode_images(pixels, ["itc"])["itc"][:, 0]
    np.testing.assert_allclose(found, whole.image_embeds.numpy(), atol=2e-6)
    said = encoder.encode_texts(TEXTS, ["itc"])["itc"][:, 0]
    np.testing.assert_allclose(said, whole.text_embeds.numpy(), atol=2e-6)
    alone = encoder.encode_texts(TEXTS[-1:], ["itc"])["itc"][0, 0]
    np.testing.assert_allclose(alone, said[-1], atol=2e-6)


def test_a_store_of_it_is_searched_and_measured(tmp_path: Path) -> None:
    model = save_siglip(tmp_path / "model")
    engine = Engine("scenes:6?seed=7", store=tmp_path / "store", model=str(model))
    assert len(engine.search("a dog", 3)) == 3
    assert engine.evaluate().report.n_images == 6


def test_pixels_that_are_made_in_another_way_are_refused(tmp_path: Path) -> None:
    folder = save_siglip(tmp_path)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"resample": 1}))
    with pytest.raises(CheckpointInvalid, match="asks for resample=1"):
        open_encoder(str(folder), device="cpu")


def test_a_tokenizer_that_does_not_end_texts_has_them_ended(tmp_path: Path) -> None:
    folder = save_siglip(tmp_path, 2)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = open_encoder(str(folder), device="cpu")
    ids = encoder.tokenize(["A DOG", "a dog " * 40])  # type: ignore[attr-defined]
    assert ids[0][:-1][: len(raw.encode("a dog").ids)] == raw.encode("a dog").ids
    assert [row[-1] for row in ids] == [0, 1]  # filled, and ended at its last place
