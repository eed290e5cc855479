"""Ten nearest of many vectors, one question at a time: ours, and the indexes that one would pick.

A case is a number of rows of 256, drawn as `benchmarks.search` draws them: captions apart from images.
Each index is built in a process, and opened and asked in another one. Its effort is the least that finds
95 % of the true ten of 500 captions, if any does; figures are of 500 others. autofaiss chooses by itself.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.search_ways import WAYS, Ask
from benchmarks.peers.turns import (
    Comparison,
    Figures,
    Side,
    processor_seconds,
    watched,
    whole_process,
)
from benchmarks.search import BATCH, World, write_store

K = 10
GOAL = 0.95
SINGLE = 200
Answers = NDArray[np.int64]


def prepare(work: Path, case: str) -> None:
    """A store, the same rows as a float32 array, questions and their true answers."""
    from retrieval_engine.index import ExactIndex

    world = World(int(case), 1)
    captions, owners = world.captions(2 * BATCH)
    store = write_store(work / "store", world, captions[:BATCH], owners[:BATCH])
    gallery = store.gallery()
    (work / "rows").mkdir()
    rows = np.lib.format.open_memmap(
        work / "rows" / "0.npy", mode="w+", dtype=np.float32, shape=(int(case), captions.shape[1])
    )
    for start, block in gallery.image_blocks("itc", 50_000):
        rows[start : start + len(block)] = block[:, 0]
    rows.flush()
    exact = ExactIndex.streaming(lambda n: gallery.image_blocks("itc", n), int(case), (1, 256))
    np.save(work / "questions.npy", captions)
    np.save(work / "right.npy", exact.search(captions, K)[1])


def build(work: Path, name: str) -> None:
    """Build one index, and say how long it took and how large it is."""
    out = work / name
    out.mkdir()
    with watched() as watch:
        WAYS[name].build(work, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print("\n" + json.dumps({"build_s": watch.figures["seconds"], "bytes": size}))


def ask(work: Path, case: str, *, name: str) -> Figures:
    """Build where that has not been done, then open and ask."""
    told = work / f"{name}.json"
    if not told.exists():
        command = [sys.executable, "-m", "benchmarks.peers.search", str(work), name]
        used, printed = whole_process(command)
        made = json.loads(printed.splitlines()[-1])
        made = {
            "build_s": made["build_s"],
            "build_cpu_s": used["cpu_s"],
            "build_peak_mb": used["peak_mb"],
            "bytes_per_row": made["bytes"] / int(case),
        }
        told.write_text(json.dumps(made))
    made = json.loads(told.read_text())
    questions, right = np.load(work / "questions.npy"), np.load(work / "right.npy")
    index = WAYS[name].open(work / name)
    if "effort" not in made:
        made["effort"] = str(least(index.at, index.efforts, questions[:BATCH], right[:BATCH]))
        told.write_text(json.dumps(made))
    found = index.at(next(e for e in index.efforts if str(e) == made["effort"]))
    unseen, truth = questions[BATCH:], right[BATCH:]
    times, answers, begun = [], [], processor_seconds()
    for i in range(-5, len(unseen)):
        begin = time.perf_counter()
        answers.append(found(unseen[max(i, 0)][None], K))
        times.append(1e3 * (time.perf_counter() - begin))
    return {
        "p50_ms": statistics.median(times[5 : 5 + SINGLE]),
        "query_cpu_ms": 1e3 * (processor_seconds() - begun) / len(answers),
        "recall_at_10": recall(np.concatenate(answers[5:]), truth),
        **made,
    }


def least(
    at: Callable[[object], Ask],
    efforts: list[object],
    questions: NDArray[np.float32],
    right: Answers,
) -> object:
    """The first effort that finds enough, or the last."""
    for effort in efforts[:-1]:
        search = at(effort)
        if recall(np.concatenate([search(q[None], K) for q in questions]), right) >= GOAL:
            return effort
    return efforts[-1]


def recall(found: Answers, right: Answers) -> float:
    """Share of the true ten that are among those found."""
    return float((found[:, :, None] == right[:, None, :]).any(axis=1).mean())


def judge(work: Path, case: str, side: str) -> Figures:
    """Recall is measured with the time."""
    return {}


SLOW = frozenset({"1000000"})  # graphs of a million rows take one thread more than five minutes
COMPARISON = Comparison(
    prepare=prepare,
    judge=judge,
    sides={
        name: Side(
            run=partial(ask, name=name),
            package=way.package,
            note=way.note,
            skip=SLOW if way.is_slow else frozenset(),
        )
        for name, way in WAYS.items()
    },
    costs=("p50_ms", "query_cpu_ms", "build_s", "build_cpu_s", "bytes_per_row"),
    cases=("100000", "1000000"),
    tiny="600",
)

if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2])
