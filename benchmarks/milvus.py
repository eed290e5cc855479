"""Recall and time of searches in Milvus beside FAISS, in one run over one store, filters included.

    python -m benchmarks.milvus                                 20,000 x 256, and 2,000 of 32 each
    python -m benchmarks.milvus --items 100000 --vectors 1 --ways milvus-flat,milvus-hnsw,flat-fp16
    python -m benchmarks.milvus --uri http://HOST:19530         a server of yours
    python -m benchmarks.milvus --tiny                          for a test

Without --uri it starts Milvus Lite's server on this machine. The vectors are those of
`benchmarks.search`; recall is of captions that the build has not seen, against exact search.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import emit
from benchmarks.search import BATCH, World, write_store
from retrieval_engine.index import Index, build_index, open_index
from retrieval_engine.index.grouping import read_only
from retrieval_engine.index.measured import K, expect, recall_at_10
from retrieval_engine.index.milvus_server import Server
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.store import Store
from retrieval_engine.testing.milvus_lite import milvus_server

SHARES = (1.0, 0.5, 0.05, 0.01, 0.001)
ASKED = 50


def recipe_of(way: str, folder: Path) -> str:
    """A recipe's name, or a file for one of Milvus."""
    if not way.startswith("milvus-"):
        return way
    kind = way.removeprefix("milvus-").upper()
    file = folder / f"{way}.toml"
    file.write_text(f'backend = "milvus"\noptions = {{ index_type = "{kind}", keep_old_s = 0 }}\n')
    return str(file)


def p50(index: Index, queries: NDArray[np.float32], allowed: NDArray[np.bool_] | None) -> float:
    """Median milliseconds of one query alone, after three that count for nothing."""
    times = []
    for i in range(ASKED + 3):
        begin = time.perf_counter()
        index.search(queries[i % len(queries)][None], K, allowed)
        times.append(1e3 * (time.perf_counter() - begin))
    return round(statistics.median(times[3:]), 3)


def compare(
    store: Store, world: World, queries: NDArray[np.float32], ways: list[str], uri: str
) -> None:
    """A line for each way and share of the items that a filter leaves."""
    exact = image_vectors(store, "itc", None).exact()
    rng, right = np.random.default_rng(0), {}
    for share in SHARES:
        mask = None if share == 1 else read_only(rng.random(world.items) < share)
        right[share] = expect(exact, queries, mask)
    folder = store.path.parent
    for way in ways:
        ours = way.startswith("milvus-")
        out, recipe = folder / way, recipe_of(way, folder)
        report = build_index(store, out, recipe=recipe, uri=uri if ours else "")
        begin = time.perf_counter()
        index = open_index(out)
        opened = 1e3 * (time.perf_counter() - begin)
        for share, expected in right.items():
            mask = expected.allowed
            emit(
                "milvus",
                way=way,
                server=Server(uri, 5).version if ours else "",
                items=world.items,
                vectors=world.vectors,
                share=share,
                left=world.items if mask is None else int(mask.sum()),
                recall_at_10=round(recall_at_10(index, expected), 4),
                p50_ms=p50(index, queries, mask),
                build_s=report.seconds,
                open_ms=round(opened, 1),
                effort=report.effort,
            )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--items", type=int)
    parser.add_argument("--vectors", type=int)
    parser.add_argument("--ways", default="milvus-flat,milvus-hnsw,flat-fp16,hnsw-fp16")
    parser.add_argument("--uri")
    arguments = parser.parse_args()
    worlds = [(arguments.items or 20_000, arguments.vectors or 1)]
    if arguments.items is None and arguments.vectors is None:
        worlds.append((2_000, 32))
    if arguments.tiny:
        worlds, arguments.ways = [(300, 2)], "milvus-flat,flat-fp16"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lite = milvus_server(folder / "milvus")
        with nullcontext(arguments.uri) if arguments.uri else lite as uri:
            for items, vectors in worlds:
                world, place = World(items, vectors), folder / f"of-{vectors}"
                captions, owners = world.captions(BATCH + ASKED)
                store = write_store(place / "store", world, captions[:BATCH], owners[:BATCH])
                compare(store, world, captions[BATCH:], arguments.ways.split(","), uri)


if __name__ == "__main__":
    main()
