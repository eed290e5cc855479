"""`--dtype int8`: near float32, the same alone and in a batch, a fingerprint of its own, on a CPU only."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.int8_ranges import measured_ranges
from retrieval_engine.cli import main
from retrieval_engine.errors import MissingExtra, UsageError
from retrieval_engine.models import open_encoder, reopen_encoder
from retrieval_engine.models.blip import hybrid_tower, int8_backbone
from retrieval_engine.models.blip.backbone import EfficientNetLite
from retrieval_engine.models.blip.int8_backbone import known_ranges
from retrieval_engine.models.blip.onnx_backbone import graph
from retrieval_engine.models.device import is_exact_at_int8, normalized_pixels, pick_dtype
from retrieval_engine.models.int8 import Int8Linear, to_int8
from retrieval_engine.testing.encoder_contract import image_batch
from tests import tiny, tiny_blip2
from tests.test_clip import save_clip
from tests.test_siglip import save_siglip

SAVERS: dict[str, Callable[[Path], Path]] = {
    "blip": tiny.save_blip,
    "blip2": tiny_blip2.save_blip2,
    "clip": save_clip,
    "siglip": save_siglip,
}


@pytest.mark.parametrize("family", SAVERS)
def test_features_are_near_and_do_not_depend_on_the_batch(family: str, tmp_path: Path) -> None:
    model = str(SAVERS[family](tmp_path / "model"))
    exact: Any = open_encoder(model, device="cpu", dtype="float32")
    rough: Any = open_encoder(model, dtype="int8")
    side = exact.preprocessor.image_size
    pixels = np.random.default_rng(1).integers(256, size=(5, side, side, 3), dtype=np.uint8)
    wanted = exact.encode_images(pixels, ["itc", "tokens"])
    found = rough.encode_images(pixels, ["itc", "tokens"])
    assert not np.allclose(found["tokens"], wanted["tokens"], atol=1e-5)
    assert (found["itc"] * wanted["itc"]).sum(-1).min() > 0.98
    again = reopen_encoder(rough.spec).encode_images(pixels[3:4], ["itc", "tokens"])
    for name, array in again.items():
        np.testing.assert_array_equal(array[0], found[name][3])
    assert rough.spec.dtype == "int8"
    assert rough.spec.fingerprint != exact.spec.fingerprint
    texts = ["a dog on the grass", "a cat"]
    told = rough.encode_texts(texts, ["itc"])["itc"]
    np.testing.assert_array_equal(told, exact.encode_texts(texts, ["itc"])["itc"])


@pytest.mark.parametrize("damage", [None, b"", b"short", b"x" * 4096])
def test_the_graph_in_int8_is_made_once_and_again_where_it_was_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "cache"))
    backbone = EfficientNetLite("efficientnet-lite0")
    written, x = graph(backbone), np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    ranges = measured_ranges(written, [x])
    made = int8_backbone.quantised(written, ranges)
    (file,) = (tmp_path / "cache" / "graphs").iterdir()
    if damage is not None:
        file.write_bytes(damage)
    tool, calls = int8_backbone._quantised, []

    def counted(*given: Any) -> bytes:
        calls.append(given)
        return tool(*given)

    monkeypatch.setattr(int8_backbone, "_quantised", counted)
    assert int8_backbone.quantised(written, ranges) == made
    assert len(calls) == (damage is not None)
    other = {name: (low, high + 1) for name, (low, high) in ranges.items()}
    assert int8_backbone.quantised(written, other) != made, "other ranges are another graph"


def test_a_layer_is_a_rounded_product() -> None:
    layer = torch.nn.Linear(64, 32, bias=False)
    holder = torch.nn.Sequential(layer)
    to_int8(holder)
    assert isinstance(holder[0], Int8Linear)
    assert not list(holder.parameters())
    x = torch.randn(3, 7, 64)
    right = layer(x).detach()
    off = (holder(x) - right).abs().max() / right.abs().max()
    assert 1e-5 < off < 0.03


def test_a_store_in_int8_is_searched_measured_and_captioned(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    line = ["encode", "scenes:24?seed=5", "--model", "vlre-tiny", "--store", store]
    line += ["--features", "itc,pooled,tokens"]
    whole = CliRunner().invoke(main, [*line, "--dtype", "int8", "--json"])
    assert whole.exit_code == 0, whole.output
    other = CliRunner().invoke(main, [*line, "--dtype", "float32"])
    assert other.exit_code == 1
    assert "dtype 'int8', not 'float32'" in other.stderr
    more = ["encode", "scenes:30?seed=5", *line[2:]]  # of no --dtype: the store's own
    again = CliRunner().invoke(main, [*more, "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["images"]["encoded"] == 6
    found = CliRunner().invoke(main, ["search", "a dog on grass", "--store", store, "--json"])
    assert found.exit_code == 0, found.output
    recall = CliRunner().invoke(
        main, ["eval", "--recall", "--rerank", "4", "--store", store, "--json"]
    )
    assert recall.exit_code == 0, recall.output
    out = tmp_path / "captions.jsonl"
    written = CliRunner().invoke(main, ["caption", "--store", store, "--out", str(out)])
    assert written.exit_code == 0, written.output
    assert len(out.read_text().splitlines()) == 30
    assert json.loads(out.read_text().splitlines()[0])["caption"]


@pytest.mark.skipif(not is_exact_at_int8(), reason="a CPU without VNNI")
def test_the_backbone_in_int8_is_near_and_does_not_depend_on_the_batch() -> None:
    exact: Any = open_encoder("vlre-photo", device="cpu", dtype="float32")
    rough: Any = open_encoder("vlre-photo", dtype="int8")
    pixels = image_batch(exact, 5)
    wanted = exact.encode_images(pixels, ["itc", "tokens"])
    found = rough.encode_images(pixels, ["itc", "tokens"])
    assert not np.allclose(found["tokens"], wanted["tokens"], atol=1e-3)
    assert (found["itc"] * wanted["itc"]).sum(-1).min() > 0.98
    again = reopen_encoder(rough.spec).encode_images(pixels[3:4], ["itc"])["itc"]
    np.testing.assert_allclose(again[0], found["itc"][3], atol=2e-6)
    assert rough.spec.dtype == "int8"
    assert rough.spec.fingerprint != exact.spec.fingerprint


def test_ranges_are_those_that_pictures_have() -> None:
    encoder: Any = open_encoder("vlre-photo", device="cpu", dtype="float32")
    backbone = encoder.model.vision_model.backbone._exported[0]
    known = known_ranges(backbone)
    assert known is not None
    pixels = image_batch(encoder, 2)
    x = normalized_pixels(pixels, encoder.preprocessor, encoder.device).numpy()
    measured = measured_ranges(graph(backbone), [x])
    assert set(known) == set(measured)
    wide = [(high - low) / (known[n][1] - known[n][0]) for n, (low, high) in measured.items()]
    assert 0.3 < np.median(wide) < 1.1  # two drawn scenes are less than 256 photographs


def test_ranges_belong_to_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = EfficientNetLite("efficientnet-lite2")
    assert known_ranges(backbone) is None
    monkeypatch.setattr(hybrid_tower, "known_ranges", lambda _: None)
    monkeypatch.setattr(hybrid_tower, "is_exact_at_int8", lambda: True)
    with pytest.raises(UsageError, match="knows no ranges for the backbone of vlre-photo"):
        open_encoder("vlre-photo", dtype="int8")
    monkeypatch.setattr(hybrid_tower, "is_exact_at_int8", lambda: False)
    with pytest.raises(UsageError, match="needs a CPU with VNNI"):
        open_encoder("vlre-photo", dtype="int8")
    monkeypatch.setattr(hybrid_tower, "is_installed", lambda: False)
    with pytest.raises(MissingExtra, match="onnxruntime"):
        open_encoder("vlre-photo", dtype="int8")


def test_a_change_of_the_ranges_is_another_arithmetic() -> None:
    # Stores in int8 were made with these; others need another name than int8.
    file = Path(int8_backbone.__file__).with_name("backbone_ranges.json")
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:16] == "7eff7e8ab257b976"


def test_where_it_cannot_be_it_is_refused() -> None:
    with pytest.raises(UsageError, match="int8 is for a CPU"):
        pick_dtype("int8", torch.device("cuda"))
