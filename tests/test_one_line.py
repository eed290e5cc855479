"""Whatever is wrong with an input: one line and a hint, no traceback, nothing half-written."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result

from retrieval_engine.cli import main
from retrieval_engine.encoding import encode
from retrieval_engine.errors import StoreDamaged, StoreError, UsageError
from retrieval_engine.models.device import pick_device
from retrieval_engine.store import open_store
from retrieval_engine.strict_json import loads
from retrieval_engine.testing.images import jpeg
from retrieval_engine.testing.store_data import pictures, write
from tests import tiny
from tests.children import in_child, vlre


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        (path / f"{i}.jpg").write_bytes(jpeg(i))
        (path / f"{i}.txt").write_text(f"a dog {i}\na cat {i}\n")
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, folder: Path) -> Path:
    path = tmp_path_factory.mktemp("stores") / "s"
    encode(f"folder:{folder}", path, encoder=str(checkpoint))
    return path


def run(*arguments: object, input: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], input=input)


def explained(result: Result, code: int = 1) -> str:
    """The error line of a run that failed as it should."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().split("\n")
    error = [line for line in lines if line.startswith("Error: ")]
    assert len(error) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "unforeseen" not in result.stderr
    return error[0]


# --- weights ---


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("kind", ["code", "numpy", "zip with code", "cut", "text"])
def test_pickled_weights_are_refused_without_advice(
    tmp_path: Path, checkpoint: Path, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (model / file.name).write_bytes(file.read_bytes())
    weights = model / "pytorch_model.bin"
    if kind == "code":
        weights.write_bytes(pickle.dumps({"a": _Evil()}))
    elif kind == "numpy":
        torch.save({"a": np.ones(3)}, weights)
    elif kind == "zip with code":
        torch.save({"a": _Evil()}, weights)
    elif kind == "cut":
        torch.save({"a": torch.ones(1000)}, weights)
        weights.write_bytes(weights.read_bytes()[:2000])
    else:
        weights.write_text("<html>not found</html>")
    result = run("encode", folder, "--model", model, "--store", tmp_path / "s")
    line = explained(result)
    assert str(weights) in line
    for advice in ("weights_only", "trust", "unsafe", "allow_pickle"):
        assert advice not in line
    assert "weights_only" not in result.stderr
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "s").exists()


def test_pickled_vectors_are_refused_without_advice(tmp_path: Path, store: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([_Evil(), None], object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("hello")
    for name in ("objects.npy", "text.npy"):
        result = run("search", "--vectors", tmp_path / name, "--store", store)
        assert "allow_pickle" not in result.stderr
        assert "unsafe" not in result.stderr
        assert name in explained(result)


# --- what is typed ---


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "mps", "cpu:x", "xpu", "", "cuda:-1"])
def test_a_bad_device_is_wrong_usage(
    name: str, store: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    with pytest.raises(UsageError, match="device"):
        pick_device(name)
    if not name:  # click takes an empty variable for none
        return
    monkeypatch.setenv("VLRE_DEVICE", name)
    assert repr(name)[1:-1] in explained(
        run("search", "a dog", "--store", store, "--model", checkpoint), 2
    )


@pytest.mark.parametrize(
    "factory", ["HNSW0", "HNSW1", "IVF4_HNSW0,Flat", "PQ8x0np", "IVF0,Flat", "PCA0,Flat", "HNSW00"]
)
def test_factory_strings_that_end_the_process_are_refused(
    tmp_path: Path, store: Path, factory: str
) -> None:
    result = run(
        "index", "--store", store, "--index", tmp_path / "i", "--recipe", f"factory:{factory}"
    )
    assert factory in explained(result, 2)
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("factory", ["HNSW10,Flat", "PCA10,Flat", "HNSW32,SQfp16"])
def test_zeros_inside_numbers_are_no_matter(tmp_path: Path, store: Path, factory: str) -> None:
    out = tmp_path / "i"
    result = run("index", "--store", store, "--index", out, "--recipe", f"factory:{factory}")
    assert result.exit_code == 0, result.output


def test_a_recipe_nested_too_deep(tmp_path: Path, store: Path) -> None:
    (tmp_path / "deep.toml").write_text("factory = " + "[" * 50_000)
    (tmp_path / "latin.toml").write_bytes(b'factory = "caf\xe9"')
    for name in ("deep.toml", "latin.toml"):
        result = run(
            "index", "--store", store, "--index", tmp_path / "i", "--recipe", tmp_path / name
        )
        assert name in explained(result, 2)


def test_queries_that_are_no_utf8(store: Path) -> None:
    line = explained(run("search", "caf\udce9", "--store", store), 2)
    assert "query 1 is not UTF-8: 'caf\\udce9'" in line
    line = explained(run("search", "-", "--store", store, input=b"a dog\ncaf\xe9\n"), 2)
    assert "stdin is not UTF-8: b'caf\\xe9'" in line
    bom = run("search", "-", "--store", store, "--json", "-k", 1, input=b"\xef\xbb\xbfa dog\r\n\n")
    assert [json.loads(line)["query"] for line in bom.stdout.splitlines()] == ["a dog"]
    assert "names a source, not a picture" in explained(
        run("search", "--image", "folder:p", "--store", store)
    )


# --- our own files ---


def test_strict_json() -> None:
    assert loads(b'{"a": [1, 2.5, "x", null]}') == {"a": [1, 2.5, "x", None]}
    assert loads('"a\\\\u0000"') == "a\\u0000"  # an escaped backslash, no NUL
    for text, why in (
        ("[" * 200_000, "nested too deep"),
        ("1e999", "beyond all floats"),
        ('{"a": NaN}', "holds NaN"),
        ('"a\\u0000b"', "NUL"),
        ('"\\\\\\u0000"', "NUL"),
        ("{", "Expecting"),
        (b"\xff", "decode"),
    ):
        with pytest.raises(ValueError, match=why):
            loads(text)


@pytest.mark.parametrize("name", ["store.json", "manifest.json"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "[" * 200_000,
        lambda text: text.replace('"format_version": 1', '"format_version": 1e999'),
        lambda text: text.replace(".h5", "\\u0000.h5").replace("tests", "te\\u0000sts"),
        lambda text: text.replace('"rows": 5', '"rows": 5000000000000').replace("float16", "O"),
        lambda text: text.replace('"rows": 5', '"rows": 1e30').replace("float16", "S9"),
        lambda text: text.replace("[\n", "[\n 99999999999,\n"),
        lambda text: text.replace('"bytes": ', '"bytes": -'). replace('"fingerprint"', '"fingerprinT"'),
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "null",
    ],
)  # fmt: skip
def test_spoiled_manifests(tmp_path: Path, name: str, spoil: Callable[[str], str]) -> None:
    write(tmp_path / "s", pictures(5).items)
    file = tmp_path / "s" / name
    value = json.loads(file.read_text())
    del value["checksum"]  # as in stores of before: nothing but the reader's own sense
    text = json.dumps(value, indent=1)
    spoiled = spoil(text)
    assert spoiled != text
    file.write_text(spoiled)
    with pytest.raises(StoreDamaged, match=name):
        open_store(tmp_path / "s").gallery().images("itc")
    assert name in explained(run("store", "info", "--store", tmp_path / "s"))


@pytest.mark.parametrize("how", ["column gone", "other type", "no parquet", "footer"])
def test_items_tables_of_another_schema(tmp_path: Path, how: str) -> None:
    import hashlib

    write(tmp_path / "s", pictures(5).items)
    file = tmp_path / "s" / "shards" / "items-00000.parquet"
    table = pq.read_table(file)
    if how == "column gone":
        pq.write_table(table.drop_columns(["uri"]), file)
    elif how == "other type":
        numbers = pa.array(range(len(table)), pa.int32())
        pq.write_table(table.set_column(table.column_names.index("uri"), "uri", numbers), file)
    elif how == "no parquet":
        file.write_bytes(b"PAR1" + bytes(100))
    else:
        data = bytearray(file.read_bytes())
        data[-200:-150] = bytes(50)
        file.write_bytes(data)
    manifest = tmp_path / "s" / "manifest.json"
    value = json.loads(manifest.read_text())
    del value["checksum"]
    for entry in value["parts"][0]["files"]:
        if entry["name"] == file.name:  # a manifest that agrees: the reader alone must notice
            entry["bytes"] = file.stat().st_size
            entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(value))
    with pytest.raises(StoreDamaged, match=r"items-00000\.parquet is damaged"):
        open_store(tmp_path / "s").items()
    assert "items-00000.parquet" in explained(run("search", "x", "--store", tmp_path / "s"))


@pytest.mark.parametrize("bit", range(0, 4000, 311))
def test_a_flipped_bit_in_any_file_of_a_store_is_noticed(tmp_path: Path, bit: int) -> None:
    write(tmp_path / "s", pictures(5).items)
    shards = sorted((tmp_path / "s" / "shards").iterdir())
    for file in [tmp_path / "s" / "store.json", tmp_path / "s" / "manifest.json", *shards]:
        before = file.read_bytes()
        data = bytearray(before)
        at = (bit * 7919) % (8 * len(data))
        data[at // 8] ^= 1 << at % 8
        file.write_bytes(data)
        with pytest.raises(StoreError):  # `format_version` may have become a larger one
            _read_all(tmp_path / "s")
        file.write_bytes(before)
    _read_all(tmp_path / "s")


def _read_all(path: Path) -> None:
    gallery = open_store(path).gallery()
    gallery.images("itc")
    gallery.images("pooled")
    for name in ("itc", "token_ids", "token_mask"):
        gallery.captions(name)


# --- a full disk ---


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["encode", "{folder}", "--model", "{model}", "--store", "{out}/s"], "{out}/s/shards"),
        (["index", "--store", "{store}", "--index", "{out}/i"], "{out}/i"),
        (["search", "dog", "--store", "{store}", "--html", "{out}/p.html", "--quiet"], "{out}/p.html"),
        (["train-head", "--store", "{store}", "--out", "{out}/h", "--epochs", "1"], "{out}/h"),
        (["store", "compact", "--store", "{copy}"], "{copy}/shards"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_full_disk_is_one_line_with_the_file(
    tmp_path: Path,
    store: Path,
    folder: Path,
    checkpoint: Path,
    arguments: list[str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil

    shutil.copytree(store, tmp_path / "copy")
    (folder / "0.jpg").touch()
    names = {"folder": folder, "model": checkpoint, "store": store, "out": tmp_path / "o",
             "copy": tmp_path / "copy"}  # fmt: skip
    (tmp_path / "o").mkdir()
    if "compact" in arguments:  # something to drop
        assert run("store", "forget", folder, "--store", tmp_path / "copy").exit_code == 0
        encode(f"folder:{folder}", tmp_path / "copy", encoder=str(checkpoint))
        (folder / "extra.jpg").write_bytes(jpeg(99))
        encode(f"folder:{folder}", tmp_path / "copy", encoder=str(checkpoint))
        (folder / "extra.jpg").unlink()
        encode(f"folder:{folder}", tmp_path / "copy", encoder=str(checkpoint))
    monkeypatch.chdir(tmp_path / "o")
    result = in_child(vlre(*(a.format(**names) for a in arguments)), file_bytes=3000)
    assert result.code == 1, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert named.format(**names) in errors[0], result.output
    assert "Traceback" not in result.output
    assert "unforeseen" not in result.output
    left = {p.name for p in (tmp_path / "o").rglob("*") if p.is_file()}
    assert left <= {"log.jsonl"}, left  # what a training said so far
    assert len(open_store(tmp_path / "copy").gallery()) == 40
