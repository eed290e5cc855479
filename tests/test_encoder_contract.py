"""The contract of an encoder, kept by every family that ships and by one written here."""

from pathlib import Path

from retrieval_engine import open_encoder
from retrieval_engine.models import Encoder
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
