"""What a filter costs: its evaluation, and a search among what it leaves, with the recall of it.

    python -m benchmarks.filters                         1,000,000 x 256 in lists (ivf-fp16)
    python -m benchmarks.filters --items 100000 --recipe hnsw-fp16
    python -m benchmarks.filters --place DIR             store and index in DIR, made where absent
    python -m benchmarks.filters --tiny                  for a test

Vectors and captions are those of `benchmarks.search`. A filter leaves 50 %, 5 % or .1 % of the
items, drawn at random (as a camera does) or by whole clusters of like images (as a folder does).
One query at a time on one thread; queries with and without the filter take turns, so that other
work on the machine slows both. Evaluation is of a table like a photographer's, on one thread.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.report import emit
from benchmarks.search import BATCH, World, write_store
from retrieval_engine.index import build_index, open_index
from retrieval_engine.index.measured import SHARES, expect, recall_at_10
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.search.nearest import NearestImages
from retrieval_engine.store import open_store
from retrieval_engine.store.filters import ItemFilter

QUERIES = 100
WHERE = "taken >= '2023-05' and camera like 'iPhone%' and folder = 'f7'"
LISTS = "subjects contains 'cat'"


def masks(world: World) -> dict[tuple[str, float], NDArray[np.bool_]]:
    """Read-only masks of each kind and share."""
    rng = np.random.default_rng(5)
    found = {}
    for share in SHARES:
        some = np.sort(rng.random(len(world.centres)))
        limit = some[max(0, int(share * len(some)) - 1)]
        of_clusters = rng.permutation(some)[world.cluster] <= limit
        for kind, mask in (
            ("random", rng.random(world.items) < share),
            ("clusters", of_clusters),
        ):
            mask[0] = True
            mask.flags.writeable = False
            found[kind, share] = mask
    return found


def search(place: Path, world: World, recipe: str, asked: int) -> None:
    """A line for each filter, with so many queries."""
    captions, owners = world.captions(2 * BATCH)
    if not (place / "store").exists():
        write_store(place / "store", world, captions[:BATCH], owners[:BATCH])
    store = open_store(place / "store")
    if not (place / "index").exists():
        build_index(store, place / "index", recipe=recipe)
    index = open_index(place / "index")
    report = index.manifest.report
    sizes = {"items": world.items, "recipe": index.manifest.recipe}
    emit(
        "filters",
        way="build",
        **sizes,
        effort=dict(index.manifest.effort),
        recall_at_build=report["recall_at_10"],
        filtered_at_build=report["filtered_recall_at_10"],
    )
    queries = captions[BATCH : BATCH + asked]
    exact = image_vectors(store, "itc", None).exact()
    nearest = NearestImages(index=index, catalog=index.catalog, store=store, feature="itc")
    plain = recall_at_10(index, expect(exact, queries))
    emit("filters", way="without", **sizes, recall_at_10=round(plain, 4))
    for (kind, share), mask in masks(world).items():
        among = NearestImages(
            index=index, catalog=index.catalog, store=store, feature="itc", allowed=mask
        )
        times = {"without": nearest, "with": among}
        emit(
            "filters",
            way=kind,
            **sizes,
            share=share,
            left=int(mask.sum()),
            recall_at_10=round(recall_at_10(index, expect(exact, queries, mask)), 4),
            **_taken(times, queries),
        )


def _taken(ways: dict[str, NearestImages], queries: NDArray[np.float32]) -> dict[str, float]:
    """Medians of each way in turn, and the ratio of the two."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(2 * len(queries) + 3):
        query = queries[number % len(queries)][None]
        for name, way in ways.items():
            used, begin = time.thread_time(), time.perf_counter()
            way.search([query], 10)
            wall[name].append(1e3 * (time.perf_counter() - begin))
            cpu[name].append(1e3 * (time.thread_time() - used))
    clock = {name: statistics.median(times[3:]) for name, times in wall.items()}
    used_ms = {name: statistics.median(times[3:]) for name, times in cpu.items()}
    return {
        "p50_ms_without": round(clock["without"], 3),
        "p50_ms_with": round(clock["with"], 3),
        "ratio": round(clock["with"] / clock["without"], 3),
        "cpu_ratio": round(used_ms["with"] / used_ms["without"], 3),
    }


def table(items: int) -> Any:
    """Items as a photographer has them."""
    rng = np.random.default_rng(0)
    cameras = np.array(["iPhone 12", "iPhone 14 Pro", "Canon EOS 5D", "NIKON D750", "Pixel 7"])
    seconds = rng.integers(1_262_304_000, 1_767_225_600, items) * 1_000_000
    meta = [
        json.dumps({"subjects": ["dog", "cat"][: 1 + i % 2], "stars": i % 5}) for i in range(items)
    ]
    return pa.table(
        {
            "id": pa.array(map(str, range(items)), pa.large_string()),
            "folder": pa.array((f"f{i}" for i in rng.integers(0, 100, items)), pa.large_string()),
            "taken": pa.array(seconds, pa.timestamp("us")),
            "camera": pa.array(cameras[rng.integers(0, 5, items)].tolist(), pa.large_string()),
            "width": pa.array(rng.integers(500, 5000, items), pa.int32()),
            "meta": pa.array(meta, pa.large_string()),
        }
    )


def evaluate(items: int) -> None:
    """A line for DuckDB, new and known, of columns and of metadata; and one for pyarrow."""
    rows = table(items)
    made = ItemFilter(rows)
    made.mask("width = 0")  # DuckDB is imported and open

    def line(way: str, where: str, act: Callable[[], Any], found: int) -> None:
        begin, used = time.perf_counter(), time.process_time()
        assert int(np.sum(np.asarray(act()))) == found
        cpu = round(1e3 * (time.process_time() - used), 3)
        ms = round(1e3 * (time.perf_counter() - begin), 3)
        emit("filters", way=way, where=where, items=items, found=found, ms=ms, cpu_ms=cpu)

    right = int(_arrow_mask(rows).sum())
    cats = items // 2
    line("duckdb", WHERE, lambda: made.mask(WHERE), right)
    line("duckdb, known", WHERE, lambda: made.mask(WHERE), right)
    line("pyarrow", WHERE, lambda: _arrow_mask(rows), right)
    line("duckdb, metadata", LISTS, lambda: made.mask(LISTS), cats)
    line("duckdb, metadata again", LISTS, lambda: made.mask(f"{LISTS} or false"), cats)


def _arrow_mask(rows: Any) -> NDArray[np.bool_]:
    """The same filter by hand in pyarrow's compute functions."""
    month = pa.scalar(datetime(2023, 5, 1), pa.timestamp("us"))
    late = pc.greater_equal(rows["taken"], month)
    phone = pc.match_like(rows["camera"], "iPhone%")
    found = pc.and_(pc.and_(late, phone), pc.equal(rows["folder"], "f7"))
    return found.combine_chunks().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--recipe", default="ivf-fp16")
    parser.add_argument("--place", type=Path)
    parser.add_argument("--search-only", action="store_true")
    arguments = parser.parse_args()
    items, asked = (1000, 20) if arguments.tiny else (arguments.items, QUERIES)
    if not arguments.search_only:
        evaluate(items)
    with tempfile.TemporaryDirectory() as scratch:
        search(arguments.place or Path(scratch), World(items, 1), arguments.recipe, asked)


if __name__ == "__main__":
    main()
