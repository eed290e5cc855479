"""The doctor: the shipped goldens hold, and each thing that is off makes its line say so."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from retrieval_engine.cli import main
from retrieval_engine.doctor import GOLDENS, check_golden
from retrieval_engine.models.checkpoint import shipped
from retrieval_engine.records import DEFAULT_MODEL
from tests.golden import GOLDEN

FAMILIES = ("blip", "blip2")


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    def make(family: str) -> Path:
        return Path(shutil.copytree(GOLDENS / family, tmp_path / family))

    return make


def change_config(folder: Path, section: str, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[section] |= values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_goldens_hold(family: str) -> None:
    finding = check_golden(GOLDENS / family, "cpu")
    assert finding.ok, finding.detail
    assert finding.check == f"golden {family} on cpu"


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_numbers_are_the_authors(family: str) -> None:
    with np.load(GOLDENS / family / "expected.npz") as shipped_arrays:
        found = dict(shipped_arrays)
    gold, pictures = GOLDEN[family], [0, 5, 6, 8]
    logits = gold["itm_logits_enc"][..., 1] if family == "blip" else gold["itm_logit_pos"]
    np.testing.assert_array_equal(found["itm_logits"], logits[pictures])
    np.testing.assert_array_equal(found["text_itc"], gold["text_embeds"])
    np.testing.assert_array_equal(found["itc_scores"], gold["itc_sim"][pictures])
    assert found["captions"].tolist() == gold.captions
    weights = load_file(GOLDENS / family / "model.safetensors")
    files = {"blip": "blip/retrieval.pth", "blip2": "blip2/blip2_retrieval.pth"}
    original = torch.load(gold.folder.parent / files[family])["model"]
    assert torch.equal(weights["itm_head.weight"], original["itm_head.weight"])


@pytest.mark.parametrize(
    ("family", "section", "values"),
    [
        ("blip", "vision_config", {"layer_norm_eps": 1e-5}),
        ("blip", "vision_config", {"num_attention_heads": 4}),
        ("blip", "text_config", {"num_attention_heads": 8}),
        ("blip2", "vision_config", {"post_layernorm_eps": 1e-3}),
        ("blip2", "qformer_config", {"num_attention_heads": 8}),
        ("blip2", "qformer_config", {"hidden_act": "relu"}),
    ],
)
def test_other_arithmetic_is_seen(
    copy: Callable[[str], Path], family: str, section: str, values: dict[str, Any]
) -> None:
    change_config(folder := copy(family), section, **values)
    assert not check_golden(folder, "cpu").ok


@pytest.mark.parametrize("family", FAMILIES)
def test_another_normalisation_is_seen(copy: Callable[[str], Path], family: str) -> None:
    file = copy(family) / "preprocessor_config.json"
    value = json.loads(file.read_text()) | {"image_mean": [0.5, 0.5, 0.5]}
    file.write_text(json.dumps(value))
    finding = check_golden(file.parent, "cpu")
    assert not finding.ok


def test_weights_that_are_not_finite_are_seen(copy: Callable[[str], Path]) -> None:
    file = copy("blip") / "model.safetensors"
    tensors = load_file(file)
    tensors["itm_head.bias"][1] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    finding = check_golden(file.parent, "cpu")
    assert not finding.ok
    assert "logits inf" in finding.detail


def test_command_prints_one_line_a_check_and_waits_for_no_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")  # never answers (RFC 5737)
    started = time.monotonic()
    result = CliRunner().invoke(main, ["doctor", "--device", "cpu"])
    assert time.monotonic() - started < 120
    lines = result.stdout.splitlines()
    checks = [line[6:26].strip() for line in lines]
    assert checks == [
        "python",
        "libraries",
        "extras",
        "device",
        "hub",
        "default model",
        "golden blip on cpu",
        "golden blip2 on cpu",
    ]
    assert "offline" in lines[4]
    bad = [check for line, check in zip(lines, checks, strict=True) if line.startswith("FAIL")]
    # In a source tree without the trained model everything but it must be well.
    assert bad == ([] if DEFAULT_MODEL in shipped() else ["default model"])
    assert result.exit_code == (1 if bad else 0)


def test_json_has_one_object_a_check_and_a_failure_exits_1(
    monkeypatch: pytest.MonkeyPatch, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    for family in FAMILIES:
        copy(family)
    shutil.copytree(GOLDENS / "pictures", tmp_path / "pictures")
    change_config(tmp_path / "blip", "vision_config", layer_norm_eps=1e-3)
    (tmp_path / "blip2" / "model.safetensors").write_bytes(b"cut")
    monkeypatch.setattr("retrieval_engine.doctor.GOLDENS", tmp_path)
    result = CliRunner().invoke(main, ["doctor", "--device", "cpu", "--json"])
    found = {line["check"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert not found["golden blip on cpu"]["ok"]
    assert not found["golden blip2 on cpu"]["ok"]
    assert found["golden blip2 on cpu"]["detail"].startswith("CheckpointInvalid: ")
    assert found["python"]["ok"]
    assert result.exit_code == 1
    assert "failed" in result.stderr
