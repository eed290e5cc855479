"""`vlre import-checkpoint --base`: the weights of a training loop around transformers."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import Tensor

from retrieval_engine.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blip_captioner(tmp_path_factory.mktemp("base") / "m")


@pytest.fixture
def trained(base: Path) -> dict[str, Tensor]:
    """Weights that a loop made of the base's."""
    return {name: t + 1 for name, t in load_file(base / "model.safetensors").items()}


def vlre(tensors: Mapping[str, Tensor], folder: Path, base: object, *words: str) -> Result:
    file = folder / "checkpoint_epoch_30.pt"
    torch.save({"epoch": 30, "model_state_dict": dict(tensors)}, file)
    given = ["import-checkpoint", str(file), "--base", str(base), "--out", str(folder / "out")]
    return CliRunner().invoke(main, [*given, *words])


def test_the_weights_take_the_place_of_the_bases(
    base: Path, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    """Also those that a wrapper has renamed, and second names of tied ones."""
    wrapped = {f"module.{name}": tensor for name, tensor in trained.items()}
    head = "text_decoder.cls.predictions.decoder.weight"
    wrapped[f"module.{head}"] = trained["text_decoder.bert.embeddings.word_embeddings.weight"]
    result = vlre(wrapped, tmp_path, base, "--json")
    assert result.exit_code == 0, result.output
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert made.keys() == trained.keys()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in made.items())
    said = json.loads(result.stdout)
    assert said["parameters"] == sum(tensor.numel() for tensor in trained.values())
    record = json.loads((tmp_path / "out" / "vlre-import.json").read_text())
    assert record == {name: value for name, value in said.items() if name != "out"}
    settings = [file for file in base.iterdir() if file.suffix == ".json"]
    assert {"config.json", "tokenizer.json"} <= {file.name for file in settings}
    for file in settings:
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text_decoder.cls.predictions.bias": None}, "1 missing: text_decoder.cls.predictions"),
        ({"itm_head.bias": torch.zeros(2)}, "1 unexpected: itm_head.bias"),
        (
            {"text_decoder.cls.predictions.bias": torch.zeros(3)},
            r"1 of another shape: text_decoder.cls.predictions.bias (3,), expected (",
        ),
        ({"vision_model.post_layernorm.bias": torch.full((32,), torch.nan)}, "1 not finite"),
    ],
)
def test_weights_of_another_model_are_refused(
    base: Path,
    trained: dict[str, Tensor],
    tmp_path: Path,
    change: dict[str, Tensor | None],
    says: str,
) -> None:
    changed = {n: t for n, t in (trained | change).items() if t is not None}
    result = vlre(changed, tmp_path, base)
    assert result.exit_code == 1
    assert f"checkpoint_epoch_30.pt holds no weights of {base}: {says}" in result.stderr
    assert "give the model that the training started from, --base ID" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_epoch_30.pt"]


def test_a_base_that_cannot_be_is_refused(
    base: Path, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    config = json.loads((base / "config.json").read_text())
    for named in (["logging"], "Blip", None):
        (strange / "config.json").write_text(json.dumps(config | {"architectures": named}))
        result = vlre(trained, tmp_path, strange)
        assert result.exit_code == 1
        assert "transformers knows no model" in result.stderr
    result = vlre(trained, tmp_path, base, "--image-size", "64")
    assert result.exit_code == 2
    assert "--image-size" in result.stderr
