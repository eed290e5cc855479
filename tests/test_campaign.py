"""The campaign: a short one each time, the whole one when asked for (`-m slow`)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(*arguments: str) -> list[list[str]]:
    """Rows of the table: trial, tried, held, fell."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.campaign", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    lines = [line for line in run.stdout.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")][:4] for line in lines[2:]]


def test_a_short_campaign_holds() -> None:
    rows = _run("--short")
    tried = {name: int(tried.replace(",", "")) for name, tried, _, _ in rows}
    assert all((held, fell) == (tried, "0") for _, tried, held, fell in rows)
    assert tried["kill -9 encode"] >= 1
    assert tried["kill -9 index"] >= 1
    assert tried["kill -9 compact"] >= 1
    assert (tried["bit flips, store"], tried["bit flips, index"]) == (6, 3)
    assert tried["full disk, index"] == 1
    assert tried["mutated images"] == 250
    assert tried["writers and readers together"] == 6


@pytest.mark.slow
def test_the_whole_campaign_holds() -> None:
    rows = _run()
    assert sum(int(row[1].replace(",", "")) for row in rows) > 5_800
    assert all(tried == held and fell == "0" for _, tried, held, fell in rows)
