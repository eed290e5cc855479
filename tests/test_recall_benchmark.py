"""The benchmark of recall runs, at a tiny size, and says what it must."""

import json
import sys

import pytest

from benchmarks import recall

pytestmark = pytest.mark.whole


def test_the_benchmark_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["recall", "--tiny"])
    recall.main()
    plain, ours, whole, many = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (plain["way"], ours["way"]) == ("full-matrix", "vlre")
    for side in ("image_to_text_recall@10", "text_to_image_recall@10"):
        assert plain[side] == ours[side]
    assert (whole["captions"], many["vectors"]) == (300, 32)
    assert ours["peak_bytes"] > 1e7
    assert ours["seconds"] >= 0
