"""What it costs that a search is always up to date: unindexed items, and `vlre index --update`.

    python -m benchmarks.fresh                      100,000 x 256, 1 % of them newer than the index
    python -m benchmarks.fresh --items 1000000
    python -m benchmarks.fresh --tiny               for a test

Single queries of the index as it was and of the index with newer items beside it are asked in
turns, so that other work on the machine slows both alike. Recall is against exact search over all
items, with captions that no build has seen. `cpu` figures are of the processor, not of the clock.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import emit
from benchmarks.search import BATCH, DIM, SINGLE, K, Vectors, World, write_store
from retrieval_engine.index import Index, build_index, open_index, update_index
from retrieval_engine.index.catalog import Catalog
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.search import Searcher
from retrieval_engine.store import Store


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    begin, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begin, time.process_time() - used


def p50(searchers: dict[str, Searcher], queries: Vectors) -> dict[str, float]:
    """Median milliseconds of one query, and of the processor, of searchers asked in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in searchers}
    for i in range(3 * SINGLE + 5):
        for name, searcher in searchers.items():
            query = queries[i % len(queries)]
            times[name].append(timed(lambda s=searcher, q=query: s.search(q, K)))  # type: ignore[misc]
    found = {}
    for name, taken in times.items():
        clock, cpu = zip(*taken[5:], strict=True)
        found[f"p50{name}_ms"] = round(1e3 * statistics.median(clock), 3)
        found[f"p50{name}_cpu_ms"] = round(1e3 * statistics.median(cpu), 3)
    return found


def recall(index: Index, catalog: Catalog, queries: Vectors, right: NDArray[np.str_]) -> float:
    """Share of the K best items found, by their ids."""
    _, items = index.search(queries, K)
    names = {n: e.id for n in np.unique(items).tolist() for e in catalog.entries([n]) if n >= 0}
    found = np.array([[names.get(n, "") for n in row] for row in items.tolist()])
    return round(float((found[:, :, None] == right[:, None, :]).any(2).mean()), 4)


def run(items: int, recipes: list[str]) -> None:
    """Print a JSON line for each recipe."""
    world, new = World(items, 1), max(1, items // 100)
    captions, owners = world.captions(2 * BATCH)
    queries, none = captions[BATCH:], (captions[:0], owners[:0])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        half = captions[:BATCH], owners[:BATCH]
        old = write_store(folder / "store", world, *half, last=items - new)
        for recipe in recipes:
            build_index(old, folder / recipe, recipe=recipe)
        now = write_store(folder / "store", world, *none, first=items - new)
        vectors = image_vectors(now, "itc", None)
        _, right = vectors.exact().search(queries, K)
        expected = np.array([[vectors.gallery.ids[i] for i in row] for row in right.tolist()])
        for recipe in recipes:
            _measure(folder, recipe, old, now, queries, expected)


def _measure(
    folder: Path, recipe: str, old: Store, now: Store, queries: Vectors, right: NDArray[np.str_]
) -> None:
    index = folder / recipe
    before, fresh = Searcher(old, index), Searcher(now, index)
    figures = p50({"": before, "_fresh": fresh}, queries)
    figures["recall_fresh"] = recall(fresh.index, fresh.catalog, queries, right)
    shutil.copytree(index, folder / "updated", dirs_exist_ok=True)
    update_s, update_cpu_s = timed(lambda: update_index(now, folder / "updated"))
    rebuild_s, rebuild_cpu_s = timed(lambda: build_index(now, folder / "rebuilt", recipe=recipe))
    for name in ("updated", "rebuilt"):
        opened = open_index(folder / name)
        figures[f"recall_{name}"] = recall(opened, opened.catalog, queries, right)
        shutil.rmtree(folder / name)
    emit(
        "fresh",
        recipe=recipe,
        items=len(fresh.catalog),
        dim=DIM,
        new=len(fresh.catalog) - len(before.catalog),
        **figures,
        update_s=round(update_s, 3),
        update_cpu_s=round(update_cpu_s, 3),
        rebuild_s=round(rebuild_s, 3),
        rebuild_cpu_s=round(rebuild_cpu_s, 3),
        times_faster=round(rebuild_s / update_s, 1),
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--recipes", default="flat-fp16,ivf-fp16")
    arguments = parser.parse_args()
    run(1000 if arguments.tiny else arguments.items, arguments.recipes.split(","))


if __name__ == "__main__":
    main()
