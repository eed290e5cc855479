"""The store's benchmark runs, at a tiny size, and says what it must."""

import json
import sys

import pytest

from benchmarks import store

pytestmark = pytest.mark.whole


def test_the_benchmark_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["store", "--tiny"])
    store.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ways = {(line["feature"], line["way"]): line for line in lines if "way" in line}
    assert set(ways) == {(f, w) for f in ("itc", "tokens") for w in ("vlre", "h5py", "npy")}
    for (_, way), line in ways.items():
        assert line["notices_a_flipped_bit"] == (way == "vlre")
        assert line["write_mb_per_s"] > 0
        assert line["read_mb_per_s"] > 0
    rest = {line["benchmark"]: line for line in lines if "way" not in line}
    assert set(rest) == {"store.items", "store.skip", "store.gallery"}
    assert rest["store.skip"]["unchanged_per_s"] > 1000
    assert all(line["commit"] and line["versions"]["h5py"] for line in lines)
