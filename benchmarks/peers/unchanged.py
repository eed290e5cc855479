"""The second run over a folder in which nothing has changed: `vlre encode` against rclip's indexing.

A case is a number of small JPEGs. Both look at size and time of a file. The first run is not measured:
ours encodes with a tiny model, and rclip, whose weights only the hub has, is given random vectors
instead of its model's. Its second run asks no model in either case, so it is its own code and database.
"""

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.peers.turns import Comparison, Figures, Side, whole_process


def prepare(work: Path, case: str) -> None:
    """Small pictures, no two the same, a thousand a folder, and a tiny BLIP."""
    from PIL import Image

    from benchmarks import checkpoints

    rng = np.random.default_rng(0)
    for i in range(int(case)):
        folder = work / "pictures" / f"{i // 1000:03}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).resize((64, 48)).save(folder / f"{i:06}.jpg", quality=80)
    checkpoints.blip(work / "model", tiny=True)


def ours(work: Path, case: str) -> Figures:
    """The command, from the start of Python to its end."""
    command = [sys.executable, "cli.py", "encode", f"folder:{work / 'pictures'}"]
    command += ["--store", str(work / "store"), "--model", str(work / "model"), "--json"]
    if not (work / "store").exists():
        whole_process(command)
    figures, printed = whole_process(command)
    report = json.loads(printed.splitlines()[-1])
    (work / "vlre.json").write_text(json.dumps(report))
    return figures


def rclip(work: Path, case: str) -> Figures:
    """`ensure_index`, from the start of Python to its end."""
    command = [sys.executable, "-m", "benchmarks.peers.rclip_index", str(work / "pictures")]
    data = str(work / "rclip")
    if not (work / "rclip").exists():
        whole_process(command, RCLIP_DATADIR=data)
    figures, printed = whole_process(command, RCLIP_DATADIR=data)
    (work / "rclip.json").write_text(printed.splitlines()[-1])
    return figures


def judge(work: Path, case: str, side: str) -> Figures:
    """How many pictures were done again, of how many."""
    told = json.loads((work / f"{side}.json").read_text())
    images = told.get("images", told)
    kept = images.get("reused", images.get("files"))
    return {"done_again": f"{images['encoded']} of {kept}"}


COMPARISON = Comparison(
    prepare=prepare,
    judge=judge,
    sides={
        "vlre": Side(run=ours, note="`vlre encode` a second time, whole process"),
        "rclip": Side(run=rclip, package="rclip", note="no model loaded, no query asked"),
    },
    cases=("10000",),
    tiny="20",
)
