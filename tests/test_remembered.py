"""Hashes of weights that are kept between starts: used where nothing changed, never else."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from retrieval_engine.models import remembered
from retrieval_engine.models.checkpoint import weight_digests


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "_LARGE_BYTES", 1000)
    monkeypatch.setattr(remembered, "_SETTLED_S", 0.0)
    (tmp_path / "model").mkdir()
    tensors = {"a.weight": torch.arange(300.0), "b.weight": torch.ones(40)}
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    time.sleep(0.02)  # a tick of the file system's clock
    return tmp_path / "model"


def digests(model: Path, *parts: str) -> dict[str, str]:
    return weight_digests(model, lambda name: name[0], dict.fromkeys(parts or ("a", "b")))


def kept(model: Path) -> Path:
    (file,) = (model.parent / "cache" / "weights").iterdir()
    return file


def test_a_second_start_takes_them_from_the_cache(model: Path) -> None:
    first = digests(model)
    said = json.loads(kept(model).read_bytes())
    assert sorted(said["tensors"]) == ["a.weight", "b.weight"]
    assert digests(model) == first
    said["tensors"]["a.weight"] = "0" * 64
    kept(model).write_text(json.dumps(said))
    assert digests(model)["a"] != first["a"]  # it was not hashed again
    assert digests(model)["b"] == first["b"]


def test_another_part_is_added_to_what_is_kept(model: Path) -> None:
    alone = digests(model, "b")
    assert {**alone, **digests(model, "a")} == digests(model)
    assert len(json.loads(kept(model).read_bytes())["tensors"]) == 2


def test_a_byte_that_changed_is_seen_though_the_time_was_set_back(model: Path) -> None:
    first, file = digests(model), model / "model.safetensors"
    was = file.stat()
    written = bytearray(file.read_bytes())
    written[-1] ^= 1
    with file.open("r+b") as opened:  # the same inode, the same size
        opened.write(written)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert digests(model)["b"] != first["b"]
    assert digests(model)["a"] == first["a"]


@pytest.mark.parametrize("text", ["", "[]", '{"state": 1}', "\xff"])
def test_a_damaged_cache_is_as_none(model: Path, text: str) -> None:
    first = digests(model)
    kept(model).write_text(text, encoding="latin-1")
    assert digests(model) == first
    assert json.loads(kept(model).read_bytes())["tensors"]


def test_neither_small_files_nor_those_just_written_are_kept(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "_SETTLED_S", 60.0)
    first = digests(model)
    monkeypatch.setattr(remembered, "_SETTLED_S", 0.0)
    monkeypatch.setattr(remembered, "_LARGE_BYTES", 1 << 20)
    assert digests(model) == first
    assert not (model.parent / "cache").exists()


def test_a_cache_that_cannot_be_written_costs_nothing_else(model: Path) -> None:
    (model.parent / "cache").write_text("a file in the way")
    assert digests(model) == digests(model)
