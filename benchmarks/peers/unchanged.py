"""The second run over a folder in which nothing has changed: `vlre encode` against rclip's indexing.

A case is a number of small JPEGs. Both look at size and time of a file. The first run is not measured:
ours encodes with a tiny model, and rclip, whose weights only the hub has, is given random vectors
instead of its model's. Its second run asks no model in either case, so it is its own code and database.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.peers.turns import ROOT, Comparison, Figures, Side


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


def _command(words: list[str], **environment: str) -> tuple[Figures, str]:
    """Seconds of a whole process, of its processor, its peak memory, and what it printed."""
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as talk:
        start = time.perf_counter()
        told = os.environ | environment
        child = subprocess.Popen(words, env=told, stdout=printed, stderr=talk, cwd=ROOT)
        _, status, used = os.wait4(child.pid, 0)  # of this process alone, unlike RUSAGE_CHILDREN
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        talk.seek(0)
        if child.returncode:
            raise RuntimeError(talk.read().strip()[-300:])
        cpu = used.ru_utime + used.ru_stime
        figures = {"seconds": seconds, "cpu_s": cpu, "peak_mb": used.ru_maxrss // 1024}
        return figures, printed.read()


def ours(work: Path, case: str) -> Figures:
    """The command, from the start of Python to its end."""
    command = [sys.executable, "cli.py", "encode", f"folder:{work / 'pictures'}"]
    command += ["--store", str(work / "store"), "--model", str(work / "model"), "--json"]
    if not (work / "store").exists():
        _command(command)
    figures, printed = _command(command)
    report = json.loads(printed.splitlines()[-1])
    (work / "vlre.json").write_text(json.dumps(report))
    return figures


def rclip(work: Path, case: str) -> Figures:
    """`ensure_index`, from the start of Python to its end."""
    command = [sys.executable, "-m", "benchmarks.peers.rclip_index", str(work / "pictures")]
    data = str(work / "rclip")
    if not (work / "rclip").exists():
        _command(command, RCLIP_DATADIR=data)
    figures, printed = _command(command, RCLIP_DATADIR=data)
    (work / "rclip.json").write_text(printed.splitlines()[-1])
    return figures


def judge(work: Path, case: str, side: str) -> Figures:
    """How many files each has, and how many it did again."""
    told = json.loads((work / f"{side}.json").read_text())
    return {key: told[key] for key in told}


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
