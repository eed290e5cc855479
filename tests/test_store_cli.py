"""`vlre store`, as typed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from retrieval_engine.cli import main
from retrieval_engine.records import Failure
from retrieval_engine.store import StoreWriter
from retrieval_engine.testing.store_data import FEATURES, SOURCE, SPEC, pictures, write


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "s"
    write(path, pictures(9).items, part_items=5)
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        writer.part().commit(
            [Failure(source=SOURCE, item_id="x.jpg", uri="/x.jpg", reason="truncated")]
        )
    return path


def _run(*arguments: str, store: Path) -> Result:
    return CliRunner().invoke(main, ["store", *arguments, "--store", str(store)])


def test_info_as_json(store: Path) -> None:
    result = _run("info", "--json", store=store)
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["fingerprint"] == SPEC.fingerprint
    assert facts["items"] == 9
    assert facts["splits"] == {"train": 3, "val": 3, "test": 3}
    assert facts["images"]["rows"] == 9
    assert facts["images"]["features"]["itc"] == {
        "shape": [2, 8],
        "dtype": "float16",
        "fingerprint": "image-1",
        "rows": 9,
    }
    assert facts["captions"]["rows"] == len({c.text for c in pictures(9).captions})
    assert (facts["failures"], facts["parts"], facts["files"]) == (1, 2, 6)
    on_disk = sum(file.stat().st_size for file in (store / "shards").iterdir())
    assert facts["bytes"] == on_disk
    assert result.stderr == ""


def test_info_for_people(store: Path) -> None:
    lines = _run("info", store=store).stdout.splitlines()
    assert f"encoder:     tests (external, {SPEC.fingerprint[:12]})" in lines
    assert "items:       9 (train 3, val 3, test 3)" in lines
    assert "  itc:       2x8 float16" in lines
    assert "failures:    1" in lines


def test_verify_repair_verify(store: Path) -> None:
    sound = _run("verify", store=store)
    assert sound.exit_code == 0
    assert sound.stdout.startswith(f"{store}: 6 files, ")

    shard = store / "shards" / "images-00001.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    (store / "shards" / "images-00009.h5.partial").write_bytes(b"left by a dead writer")
    damaged = _run("verify", "--json", store=store)
    assert damaged.exit_code == 1
    assert len(json.loads(damaged.stdout)["problems"]) == 1
    assert "images-00001.h5 has" in damaged.stderr
    assert "hint: drop what is damaged with `vlre store repair`" in damaged.stderr

    repaired = _run("repair", store=store)
    assert repaired.exit_code == 0
    assert "dropped: " in repaired.stdout
    assert "deleted: images-00009.h5.partial" in repaired.stdout
    assert "vlre encode" in repaired.stderr
    assert not shard.exists()

    again = _run("verify", "--json", store=store)
    assert again.exit_code == 0
    assert json.loads(again.stdout)["problems"] == []
    assert json.loads(_run("repair", "--json", store=store).stdout) == {
        "store": str(store),
        "problems": [],
        "deleted": [],
    }
    assert _run("repair", store=store).stdout == f"{store}: nothing to repair\n"


def test_failures(store: Path) -> None:
    assert _run("failures", store=store).stdout == "x.jpg\ttruncated\t/x.jpg\n"
    assert json.loads(_run("failures", "--json", store=store).stdout) == {
        "source": SOURCE,
        "item_id": "x.jpg",
        "uri": "/x.jpg",
        "reason": "truncated",
    }
    write(store.with_name("clean"), pictures(1).items)
    clean = _run("failures", store=store.with_name("clean"))
    assert (clean.exit_code, clean.stdout) == (0, "")
    assert "no failures" in clean.stderr


@pytest.mark.parametrize("verb", ["info", "verify", "repair", "failures"])
def test_a_path_without_a_store(tmp_path: Path, verb: str) -> None:
    result = _run(verb, store=tmp_path / "none")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"Error: no store at {tmp_path / 'none'}",
        "hint: make one with `vlre encode SOURCE --store PATH`, or name another --store",
    ]


@pytest.mark.parametrize("verb", ["info", "verify", "repair", "failures"])
def test_the_example_in_the_help_runs(
    store: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CliRunner().invoke(main, ["store", verb, "--help"]).stdout
    example = next(line.split() for line in text.splitlines() if line.startswith("    vlre "))
    store.rename(store.with_name("embeddings"))
    monkeypatch.chdir(store.parent)
    assert CliRunner().invoke(main, example[1:]).exit_code == 0
