"""The contract of an encoder, kept by every family that ships; `test_contributing` has a CLIP."""

from pathlib import Path

import torch

from retrieval_engine import open_encoder
from retrieval_engine.heads import Head, HeadConfig, HeadedEncoder, HeadKind, SavedHead
from retrieval_engine.models import Encoder
from retrieval_engine.records import Modality
from retrieval_engine.testing import EncoderContract
from tests import tiny, tiny_blip2


def opened(checkpoint: Path) -> Encoder:
    return open_encoder(str(checkpoint), device="cpu", dtype="float32")


class TestBlip(EncoderContract):
    def open(self, folder: Path) -> Encoder:
        return opened(tiny.save_blip(folder))


class TestBlip2(EncoderContract):
    def open(self, folder: Path) -> Encoder:
        return opened(tiny_blip2.save_blip2(folder))


class TestBlip2Opt(EncoderContract):
    def open(self, folder: Path) -> Encoder:
        return opened(tiny_blip2.save_blip2_opt(folder))


class TestBlip2T5(EncoderContract):
    def open(self, folder: Path) -> Encoder:
        return opened(tiny_blip2.save_blip2_t5(folder))


class TestShippedModel(EncoderContract):
    def open(self, folder: Path) -> Encoder:
        return opened(Path("vlre-tiny"))


def headed(encoder: Encoder) -> HeadedEncoder:
    """The encoder with `itc` from a random head on its `pooled` states."""
    torch.manual_seed(0)
    forms = {m: encoder.features(m)["pooled"] for m in Modality}
    width = {m: form.shape[0] for m, form in forms.items()}
    config = HeadConfig(
        kind=HeadKind.LINEAR,
        feature="pooled",
        image_width=width[Modality.IMAGES],
        text_width=width[Modality.CAPTIONS],
        dim=12,
    )
    saved = SavedHead(
        path=Path("head"),
        head=Head(config).eval(),
        encoder=encoder.spec.fingerprint,
        checkpoint=encoder.spec.checkpoint,
        inputs={m: form.fingerprint for m, form in forms.items()},
        record={},
        weights="w" * 64,
    )
    return HeadedEncoder(encoder, saved)


class TestBlipThroughAHead(EncoderContract):
    def open(self, folder: Path) -> Encoder:
        return headed(opened(tiny.save_blip(folder)))


class TestBlip2OptThroughAHead(EncoderContract):
    def open(self, folder: Path) -> Encoder:
        return headed(opened(tiny_blip2.save_blip2_opt(folder)))
