"""Time and peak memory of the commands at 10^4, 10^5, 10^6 and more items, and how they grow.

    python -m benchmarks.scale                              10,000, 100,000 and 1,000,000 x 256
    python -m benchmarks.scale --items 10000000 --commands import,index,search
    python -m benchmarks.scale --tiny                       for a test

Each command is a process of its own, as a user starts it, over imported vectors (float16, drawn as
`benchmarks.search` says) with 1,000 captions, whatever the number of items; its memory is the
largest resident set, to which pages of mapped files count as well. `slope` is the exponent of time
in items since the size before: 1 is linear. A search is a process that opens store and index, and
asks 200 captions that the index has not seen, one by one.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.report import emit
from benchmarks.search import DIM, World
from retrieval_engine.index import ExactIndex

CAPTIONS = 1000
ASKED = 200
K = 10
_SEARCH = """
import json, statistics, sys, time
import numpy as np
began = time.perf_counter()
from retrieval_engine import Engine
engine = Engine(store="store", index="index")
queries = np.load("asked.npy")
found = engine.search(queries[0], 10)
first_s = time.perf_counter() - began
times, hits = [], []
for query in queries:
    at = time.perf_counter()
    found = engine.search(query, 10)
    times.append(1e3 * (time.perf_counter() - at))
    hits.append([int(hit.item_id) for hit in found])
print(json.dumps({"first_s": round(first_s, 3), "p50_ms": round(statistics.median(times), 3),
                  "hits": hits}))
"""
_VLRE = [sys.executable, "-c", "from retrieval_engine.cli import main; main()"]
_LINES = {
    "import": "import-embeddings --images images.npy --ids ids.txt --texts texts.npy --pairs pairs.npy"
    " --name drawn --store store",
    "verify": "store verify --store store",
    "index": "index --store store --index index --json",
    "search": "",
    "recall": "eval --recall --store store",
    "calibrate": "calibrate --by itc --store store",
    "mine": "mine --no-pixels --store store --out negatives.parquet",
    "head": "train-head --epochs 2 --store store --out head",
    "import_more": "import-embeddings --images more.npy --ids more.txt --name drawn --store store",
    "update": "index --update --store store --index index",
    "compact": "store compact --store store",
}
COMMANDS = {name: [*_VLRE, *line.split()] for name, line in _LINES.items()}
COMMANDS["search"] = [sys.executable, "-c", _SEARCH]


def draw(folder: Path, items: int) -> None:
    """The files that are imported: all items, one in a hundred more, captions, and questions."""
    more = max(1, items // 100)
    world = World(items + more, 1)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.float16, (items, DIM))
    last = np.empty((more, DIM), np.float16)
    for start, block in world.images():
        inside = block[: max(0, items - start), 0]
        images[start : start + len(inside)] = inside
        outside = block[len(inside) :, 0]
        at = max(0, start - items)
        last[at : at + len(outside)] = outside
    images.flush()
    np.save(folder / "more.npy", last)
    captions, owners = world.captions(min(CAPTIONS, items) + ASKED)
    np.save(folder / "texts.npy", captions[:-ASKED])
    np.save(folder / "pairs.npy", owners[:-ASKED] % items)
    np.save(folder / "asked.npy", captions[-ASKED:])
    with (folder / "ids.txt").open("w") as file:
        file.writelines(f"{i}\n" for i in range(items))
    (folder / "more.txt").write_text("".join(f"{items + i}\n" for i in range(more)))


# A process begins with the peak of the one that started it, so that has to be a small one.
_WATCH = """
import json, os, sys, time
begin = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(child, 0)
with open("used.json", "w") as file:
    json.dump([time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024], file)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measured(command: list[str], folder: Path) -> tuple[float, float, float, str]:
    """Seconds of the clock and of processors, peak memory in MB, and what a command printed."""
    watched = [sys.executable, "-I", "-S", "-c", _WATCH, *command]
    # What is imported is this checkout; it would be found through the working directory otherwise.
    surroundings = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    said = subprocess.run(
        watched, cwd=folder, env=surroundings, capture_output=True, text=True, check=False
    )
    if said.returncode:
        name = " ".join(command[3:5])
        raise RuntimeError(f"{name} ended with {said.returncode}: {said.stderr}")
    wall, cpu, memory = json.loads((folder / "used.json").read_text())
    return wall, cpu, memory, said.stdout


def recall(folder: Path, hits: list[list[int]]) -> float:
    """Share of the ten best images found, by exact search over what was drawn."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    asked = np.load(folder / "asked.npy")
    _, right = ExactIndex(images).search(asked, K)
    return round(
        float(
            np.mean([len(set(a) & set(b)) / K for a, b in zip(hits, right.tolist(), strict=True)])
        ),
        4,
    )


def run(
    items: int, commands: list[str], folder: Path, before: dict[str, tuple[int, float]]
) -> None:
    """Print a JSON line for each command."""
    draw(folder, items)
    for name in commands:
        wall, cpu, memory, text = measured(COMMANDS[name], folder)
        figures: dict[str, object] = {}
        if name == "search":
            found = json.loads(text)
            figures = {"recall_at_10": recall(folder, found.pop("hits")), **found}
        if name == "index":
            report = json.loads(text)
            figures = {name: report[name] for name in ("recipe", "recall_at_10", "p50_ms", "bytes")}
        if name in before:
            fewer, seconds = before[name]
            figures["slope"] = round(math.log(wall / seconds) / math.log(items / fewer), 2)
        before[name] = items, wall
        emit(
            "scale",
            items=items,
            command=name,
            s=round(wall, 2),
            cpu_s=round(cpu, 2),
            peak_mb=round(memory),
            **figures,
        )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--items", default="10000,100000,1000000")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--folder", type=Path, help="Keep the files here; else they are deleted.")
    arguments = parser.parse_args()
    sizes = [300] if arguments.tiny else [int(n) for n in arguments.items.split(",")]
    before: dict[str, tuple[int, float]] = {}
    for items in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = arguments.folder / str(items) if arguments.folder else Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            run(items, arguments.commands.split(","), folder, before)


if __name__ == "__main__":
    main()
