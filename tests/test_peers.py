"""Comparisons with other packages: what of them needs none of those; nothing is installed here."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import environment, tables, turns

peers = importlib.import_module("benchmarks.peers.__main__")


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["peers", "--tiny", "--ours-only", *arguments])
    peers.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_our_sides_run_and_become_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = run(monkeypatch, capsys, "--only", "metrics,recall")
    assert [line["side"] for line in lines] == ["vlre", "vlre, tokens", "vlre"]
    assert all(line["seconds"] and "commit" in line for line in lines)
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(sys, "argv", ["peers", "--table", str(file)])
    peers.main()
    table = capsys.readouterr().out
    assert table.count("| side | ") == 2
    assert f"| vlre | {lines[2]['seconds']} | " in table


@pytest.mark.whole
def test_our_side_of_every_comparison_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(monkeypatch, capsys)
    assert {line["comparison"] for line in lines} == set(peers.COMPARISONS)
    found = {line["side"]: line for line in lines if line["comparison"] == "search"}
    assert found["vlre"]["recall_at_10"] == found["vlre flat-fp16"]["recall_at_10"] == 1
    [again] = [line for line in lines if line["comparison"] == "unchanged"]
    assert again["done_again"] == "0 of 20"
    captions = [line for line in lines if line["comparison"] == "captions"]
    assert [line["same_captions"] for line in captions] == ["4 of 4", "4 of 4"]


@pytest.mark.whole
def test_a_side_in_a_process_of_its_own_tells_its_memory(tmp_path: Path) -> None:
    run = turns.in_own_process(Path(sys.executable), 1)
    assert run("metrics", "prepare", tmp_path, "8") == {}
    assert run("metrics", "vlre", tmp_path, "8")["peak_mb"] > 20
    assert "FileNotFoundError" in run("metrics", "vlre", tmp_path / "none", "8")["failed"]


def test_ratios_are_of_pairs_and_above_one_where_ours_is_better() -> None:
    ours = [{"seconds": 1.0}, {"seconds": 2.0}, {"seconds": 4.0}]
    theirs = [{"seconds": 3.0}, {"seconds": 4.0}, {"seconds": 100.0}]
    assert turns.ratios(theirs, ours, ("seconds", "cpu_s")) == {"seconds_ratio": 3.0}
    assert turns.medians([{"a": 1, "b": "x"}, {"a": 3, "b": "y"}]) == {"a": 2.0, "b": "y"}
    assert (turns.rounded(12345.678), turns.rounded(0.00123456)) == (12346.0, 0.001235)


def test_a_peer_that_fails_says_so_and_has_no_figures() -> None:
    asked = []

    def fail(*given: object) -> turns.Figures:
        asked.append(given)
        return {"failed": "ImportError: no such thing"}

    runners = turns.Runners(ours=turns.in_this_process, theirs=fail)
    _, theirs, _, _ = turns.compare("metrics", "8", runners, 2)
    assert len(asked) == 2  # once for each of the two, and not again in the second round
    assert theirs["failed"] == "ImportError: no such thing"
    assert "seconds_ratio" not in theirs
    table = tables.markdown(json.dumps(theirs))
    assert "| pycocoevalcap | failed: ImportError: no such thing |" in table
    ill = turns.Runners(ours=fail, theirs=None)
    with pytest.raises(RuntimeError, match="metrics, 8: ImportError"):
        list(turns.compare("metrics", "8", ill, 1))


def test_the_others_are_pinned_and_bring_no_torch_of_their_own() -> None:
    lines = [line for line in environment.REQUIREMENTS.read_text().splitlines() if line[:1] != "#"]
    pins = dict(line.split("==") for line in lines)
    assert {"torch", "numpy", "transformers", "faiss-cpu", "pyarrow"}.isdisjoint(pins)
    names = {
        side.package
        for name in peers.COMPARISONS
        for side in turns.comparison_of(name).sides.values()
        if side.package
    }
    assert names - {"transformers", "milvus-lite"} <= set(pins)


def test_torchvision_is_mended_once(tmp_path: Path) -> None:
    file = tmp_path / "torchvision" / "_meta_registrations.py"
    file.parent.mkdir()
    file.write_text("rest = 1\n")
    for _ in range(2):
        environment.mend_torchvision(tmp_path)
    text = file.read_text()
    assert text.count("import torch as _torch") == text.count("rest = 1") == 1
    compile(text, str(file), "exec")
