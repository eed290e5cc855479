"""`--dtype float8`: near bfloat16, the same alone and in a batch, a fingerprint of its own.

A CPU computes it too, slowly; what a GPU makes of it is in `test_cuda.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.errors import UsageError
from retrieval_engine.models import open_encoder, reopen_encoder
from retrieval_engine.models.device import pick_device, pick_dtype
from retrieval_engine.models.float8 import Float8Linear, rounded_rows, to_float8
from tests.test_int8 import SAVERS


@pytest.mark.parametrize("family", SAVERS)
def test_features_are_near_and_do_not_depend_on_the_batch(family: str, tmp_path: Path) -> None:
    model = str(SAVERS[family](tmp_path / "model"))
    exact: Any = open_encoder(model, device="cpu", dtype="float32")
    rough: Any = open_encoder(model, device="cpu", dtype="float8")
    side = exact.preprocessor.image_size
    pixels = np.random.default_rng(1).integers(256, size=(5, side, side, 3), dtype=np.uint8)
    wanted = exact.encode_images(pixels, ["itc", "tokens"])
    found = rough.encode_images(pixels, ["itc", "tokens"])
    held = [part for part in vars(rough).values() if isinstance(part, torch.nn.Module)]
    layers = [m for part in held for m in part.modules() if isinstance(m, Float8Linear)]
    assert len(layers) >= 8
    assert (found["itc"] * wanted["itc"]).sum(-1).min() > 0.98
    again = reopen_encoder(rough.spec).encode_images(pixels[3:4], ["itc"])
    np.testing.assert_allclose(again["itc"][0], found["itc"][3], atol=0.01)
    assert rough.spec.dtype == "float8"
    assert rough.spec.fingerprint != exact.spec.fingerprint


def test_a_layer_is_a_rounded_product() -> None:
    layer, odd = torch.nn.Linear(64, 32), torch.nn.Linear(32, 5)
    holder = torch.nn.Sequential(layer, odd)
    x = torch.randn(3, 7, 64)
    right = layer(x).detach()
    to_float8(holder)
    assert isinstance(holder[0], Float8Linear)
    assert holder[1] is odd  # no multiple of 16
    off = (holder[0](x).float() - right).abs().max() / right.abs().max()
    assert 1e-3 < off < 0.06
    assert not list(holder[0].parameters())


def test_rows_are_rounded_each_by_its_largest() -> None:
    x = torch.tensor([[448.0, 1.0, -3.0], [0.0, 0.0, 0.0], [1e-4, -7e-4, 0.0]])
    rows, scales = rounded_rows(x)
    assert rows.float().abs().amax(1).tolist() == [448, 0, 448]
    torch.testing.assert_close(rows.float() * scales, x, atol=0, rtol=1 / 16)


def test_a_store_in_float8_is_searched(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    line = ["encode", "scenes:24?seed=5", "--model", "vlre-tiny", "--store", store]
    whole = CliRunner().invoke(main, [*line, "--dtype", "float8", "--device", "cpu"])
    assert whole.exit_code == 0, whole.output
    other = CliRunner().invoke(main, [*line, "--dtype", "float32"])
    assert other.exit_code == 1
    assert "dtype 'float8', not 'float32'" in other.stderr
    found = CliRunner().invoke(main, ["search", "a dog on grass", "--store", store, "--json"])
    assert found.exit_code == 0, found.output


def test_where_it_cannot_be_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="which float8 makes no faster"):
        open_encoder("vlre-photo", device="cpu", dtype="float8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    assert pick_device("auto", "float8").type == "cpu"
    assert pick_device("auto", "int8").type == "cpu"
    assert pick_device("auto").type == "cuda"
    with pytest.raises(UsageError, match="such as H100 or L4, not NVIDIA A100"):
        pick_dtype("float8", torch.device("cuda"))
