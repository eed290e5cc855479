"""The benchmark of searching, at a size that takes seconds."""

import json

import pytest

from benchmarks import fresh, search

pytestmark = pytest.mark.whole


def test_each_way_is_measured_with_its_recall(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["search", "--tiny", "--vectors", "2"])
    search.main()
    found = {line["way"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(search.RECIPES) < set(found)
    assert found["flat"]["recall_at_10"] > 0.99
    assert found["numpy float32 in memory"]["recall_at_10"] > 0.99
    assert all(found[name]["recall_at_build"] >= 0.95 for name in search.RECIPES)
    # As the real vectors that the drawn ones stand for: see the script.
    assert found["data"]["caption_own_image"] > found["data"]["caption_other"] + 0.1


def test_an_update_is_measured_against_a_rebuild(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fresh", "--tiny"])
    fresh.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["recipe"] for line in lines] == ["flat-fp16", "ivf-fp16"]
    for line in lines:
        assert (line["items"], line["new"]) == (1000, 10)
        assert line["recall_fresh"] >= 0.93
        assert line["recall_updated"] >= line["recall_rebuilt"] - 0.02
        assert {"update_s", "rebuild_s", "p50_ms", "p50_fresh_ms", "times_faster"} <= set(line)
