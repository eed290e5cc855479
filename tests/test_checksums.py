"""Models and adapters that were written here: one flipped bit is refused."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models import open_encoder
from retrieval_engine.models.checkpoint import find_model
from retrieval_engine.models.checksums import CHECKSUMS, check_checksums
from retrieval_engine.train.lora import LoraOptions, attach, matching_modules, save_adapter
from retrieval_engine.train.model_files import write_model
from tests import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blip(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "model"
    tensors = load_file(base / "model.safetensors")
    name = sorted(tensors)[0]
    write_model(base, {name: tensors[name].float() + 1}, out)
    return out


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    from transformers import BlipForImageTextRetrieval

    torch.manual_seed(0)
    model = BlipForImageTextRetrieval.from_pretrained(base)
    options = LoraOptions(r=2)
    modules = matching_modules(model, "text-self")
    wrapped = attach(model, options, modules, name="default")
    out = tmp_path_factory.mktemp("adapter") / "lora"
    return save_adapter(wrapped, out, find_model(str(base)), name="default", facts={})


def _flips(folder: Path, count: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Random bits of random files, one at a time; each file is as before afterwards."""
    rng = random.Random(seed)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for number in range(count):
        file = files[number % len(files)]
        before = file.read_bytes()
        bit = rng.randrange(8 * len(before))
        data = bytearray(before)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        yield file, bit
        file.write_bytes(before)


@pytest.mark.parametrize("kind", ["tuned", "adapter"])
def test_one_flipped_bit_is_refused(kind: str, request: pytest.FixtureRequest, base: Path) -> None:
    folder: Path = request.getfixturevalue(kind)
    recorded = json.loads((folder / CHECKSUMS).read_text())["sha256"]
    files = {path.name for path in folder.iterdir()} - {CHECKSUMS}
    assert set(recorded) == files
    before = open_encoder(str(folder), device="cpu", dtype="float32").spec
    for file, bit in _flips(folder, 77, seed=len(kind)):
        try:
            find_model(str(folder))
        except CheckpointInvalid:
            continue
        # Only in a blank of the record itself may a flip pass: it still says the same.
        assert file.name == CHECKSUMS, f"bit {bit} of {file.name} was not noticed"
        assert json.loads(file.read_text())["sha256"] == recorded
    assert open_encoder(str(folder), device="cpu", dtype="float32").spec == before


def test_what_is_missing_or_not_recorded(tmp_path: Path, tuned: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tuned, copy)
    (copy / "notes.txt").write_text("mine")  # what was not written here is not looked at
    check_checksums(copy)
    (copy / "config.json").rename(copy / "config.bak")
    with pytest.raises(CheckpointInvalid, match=r"config\.json is missing"):
        check_checksums(copy)
    (copy / "config.bak").rename(copy / "config.json")
    (copy / CHECKSUMS).write_text('{"sha256": {"../secret": "0"}}')
    with pytest.raises(CheckpointInvalid, match="no plain file name"):
        check_checksums(copy)
    (copy / CHECKSUMS).unlink()  # the way out for those who changed a file on purpose
    check_checksums(copy)


def test_a_model_tuned_from_a_tuned_one_has_its_own_record(tmp_path: Path, tuned: Path) -> None:
    tensors = load_file(tuned / "model.safetensors")
    name = sorted(tensors)[1]
    write_model(tuned, {name: tensors[name].float() * 2}, tmp_path / "again")
    check_checksums(tmp_path / "again")
    first, second = (json.loads((p / CHECKSUMS).read_text()) for p in (tuned, tmp_path / "again"))
    assert first["sha256"]["model.safetensors"] != second["sha256"]["model.safetensors"]
    assert first["sha256"]["config.json"] == second["sha256"]["config.json"]
