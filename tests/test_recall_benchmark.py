"""The benchmark of recall runs, at a tiny size, and says what it must."""

import json
import subprocess
import sys
from pathlib import Path


def test_the_benchmark_runs() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.recall", "--tiny"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert run.returncode == 0, run.stderr
    plain, ours, whole, many = [json.loads(line) for line in run.stdout.splitlines()]
    assert (plain["way"], ours["way"]) == ("full-matrix", "vlre")
    for side in ("image_to_text_recall@10", "text_to_image_recall@10"):
        assert plain[side] == ours[side]
    assert (whole["captions"], many["vectors"]) == (300, 32)
    assert ours["peak_bytes"] > 1e7
    assert ours["seconds"] >= 0
