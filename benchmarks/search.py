"""Time and recall of a search, for each recipe, against plain NumPy and faiss as it comes.

    python -m benchmarks.search                          100,000 x 256, every recipe of faiss
    python -m benchmarks.search --items 1000000
    python -m benchmarks.search --items 10000 --vectors 32    as BLIP-2 stores images
    python -m benchmarks.search --tiny                   for a test

The vectors are drawn to lie as those of CLIP ViT-B/32 on Flickr8k do (100 pictures, 500 captions,
measured): images share a direction (mean cosine .56), the rest of them lies in clusters of 100
over a spectrum that falls as 1/i (25 effective dimensions), and captions lie apart from images
(cosine .33 to the own image, .18 +- .05 to others). The figures of what was drawn are printed.
Recall is measured on captions that the build has not seen; one query at a time, and 500 in a call.
Times are of the clock; `cpu` ones are of the processor, which other work on the machine leaves alone.
"""

import argparse
import hashlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import emit
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.index import ExactIndex, Index, build_index, open_index
from retrieval_engine.index.recipes import BUILT_IN
from retrieval_engine.records import Caption, Feature, Item, Modality
from retrieval_engine.store import Store, StoreWriter, open_store

Vectors = NDArray[np.float32]
Search = Callable[[Vectors, int], NDArray[np.int64]]

DIM = 256
K = 10
BATCH = 500
SINGLE = 100
PART = 50_000
NUMPY = "numpy"
RECIPES = [name for name, recipe in BUILT_IN.items() if recipe.backend == "faiss"]


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """The vectors at length one."""
    made: Vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return made


class World:
    """Images and captions that lie as those of a trained encoder do.

    Args:
        items: number of images.
        vectors: of each image; several of one image lie near each other.
    """

    def __init__(self, items: int, vectors: int) -> None:
        rng = np.random.default_rng(0)
        self.items, self.vectors = items, vectors
        self.spectrum = np.arange(1, DIM + 1) ** -0.5
        self.centres = rng.standard_normal((max(2, items // 100), DIM))
        self.cluster = rng.integers(0, len(self.centres), items)
        self.shared, self.gap = unit(np.linalg.qr(rng.standard_normal((DIM, 2)))[0].T)

    def _content(self, start: int, stop: int) -> Vectors:
        own = np.random.default_rng((1, start)).standard_normal((stop - start, DIM))
        centre = self.centres[self.cluster[start:stop]]
        return unit((0.7 * centre + 0.7 * own) * self.spectrum)

    def images(self) -> Iterator[tuple[int, Vectors]]:
        """(first item, (b, v, d)) blocks."""
        for start in range(0, self.items, PART):
            content = self._content(start, min(self.items, start + PART))[:, None]
            rng = np.random.default_rng((2, start))
            if self.vectors > 1:
                view = rng.standard_normal((len(content), self.vectors, DIM)) * self.spectrum
                content = unit(content + 0.8 * unit(view))
            yield start, unit(0.75 * self.shared + 0.66 * content)

    def captions(self, n: int) -> tuple[Vectors, NDArray[np.int64]]:
        """(n, d) captions of n of the first images, and which images."""
        rng = np.random.default_rng(3)
        content = self._content(0, min(self.items, PART))
        chosen = rng.choice(len(content), size=n, replace=n > len(content))
        noise = unit(rng.standard_normal((n, DIM)))
        mixed = 0.8 * self.gap + 0.25 * self.shared + 0.35 * content[chosen] + 0.5 * noise
        return unit(mixed), chosen


def write_store(
    path: Path,
    world: World,
    captions: Vectors,
    owners: NDArray[np.int64],
    *,
    first: int = 0,
    last: int | None = None,
) -> Store:
    """A float16 store of the world, with the captions; of its items from `first` to `last`."""
    spec = EncoderSpec(family="external", checkpoint="drawn", weights={"image": "a", "text": "b"})

    def form(vectors: int) -> Feature:
        shape = (vectors, DIM)
        return Feature(name="itc", shape=shape, dtype="float16", fingerprint=spec.fingerprint)

    features = {Modality.IMAGES: [form(world.vectors)], Modality.CAPTIONS: [form(1)]}
    texts: dict[int, list[Caption]] = {}
    for i, owner in enumerate(owners.tolist()):
        texts.setdefault(owner, []).append(Caption(id=f"c{i}", text=f"caption {i}"))
    with StoreWriter.open(path, spec=spec, features=features) as writer:
        for start, block in world.images():
            start, block = (
                max(start, first),
                block[max(0, first - start) : (last or world.items) - start],
            )
            if not len(block):
                continue
            part = writer.part()
            ids = range(start, start + len(block))
            keys = [hashlib.sha256(b"%d" % i).hexdigest() for i in ids]
            part.add(Modality.IMAGES, keys, {"itc": block.astype(np.float16)})
            if start == 0 and len(captions):
                half = captions[:, None].astype(np.float16)
                part.add(
                    Modality.CAPTIONS,
                    [Caption(id="", text=f"caption {i}").key for i in range(len(captions))],
                    {"itc": half},
                )
            items = (Item(id=str(i), uri=f"/{i}", captions=tuple(texts.get(i, ()))) for i in ids)
            part.add_items("drawn", zip(items, keys, strict=True))
            part.commit()
    return open_store(path)


def measure(search: Search, queries: Vectors, right: NDArray[np.int64]) -> dict[str, float]:
    """Recall@10, median of single queries, and seconds of a call with all of them."""
    found = search(queries, K)
    alone = []
    for i in range(SINGLE + 5):
        begin = time.perf_counter()
        search(queries[i % len(queries)][None], K)
        alone.append(1e3 * (time.perf_counter() - begin))
    calls, work = [], []
    for _ in range(3):
        begin, used = time.perf_counter(), time.process_time()
        search(queries, K)
        calls.append(time.perf_counter() - begin)
        work.append(time.process_time() - used)
    return {
        "recall_at_10": round(float((found[:, :, None] == right[:, None, :]).any(2).mean()), 4),
        "p50_ms": round(statistics.median(alone[5:]), 4),
        "batch500_ms": round(1e3 * statistics.median(calls), 2),
        "batch500_cpu_ms": round(1e3 * statistics.median(work), 2),
    }


def baselines(
    store: Store, world: World, factories: list[str]
) -> Iterator[tuple[str, float, Search]]:
    """Name, seconds to build, and search of what one would write without this package."""
    if not factories:
        return
    rows = store.gallery().images("itc").reshape(-1, DIM)

    def grouped(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return numbers // world.vectors

    def plain(queries: Vectors, k: int) -> NDArray[np.int64]:
        return np.concatenate([few(queries[i : i + 50], k) for i in range(0, len(queries), 50)])

    def few(queries: Vectors, k: int) -> NDArray[np.int64]:
        scores = queries @ rows.T  # 50 queries at a time: 500 by a million would be 2 GB
        best = scores.reshape(len(queries), -1, world.vectors).max(axis=2)
        top = np.argpartition(-best, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(best, top, axis=1), axis=1)
        return np.take_along_axis(top, order, axis=1)

    if NUMPY in factories:
        yield "numpy float32 in memory", 0.0, plain
    lists = max(1, min(int(4 * len(rows) ** 0.5), len(rows) // 39))
    for factory in factories:
        if factory == NUMPY:
            continue
        factory = factory.replace("{nlist}", str(lists))
        begin = time.process_time()
        index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.add(rows)
        seconds = time.process_time() - begin

        def search(queries: Vectors, k: int, index: faiss.Index = index) -> NDArray[np.int64]:
            # As a notebook would: k rows, whatever items they belong to.
            return grouped(index.search(queries, k)[1])

        yield f"faiss {factory}, its defaults", seconds, search


def statistics_of(world: World, captions: Vectors, owners: NDArray[np.int64]) -> dict[str, float]:
    """How the drawn vectors lie, to compare with the real ones."""
    images = next(world.images())[1][:2000, 0]
    between = images @ images.T - 2 * np.eye(len(images))
    inside = owners < len(images)
    across = captions[inside] @ images.T
    own = across[np.arange(len(across)), owners[inside]]
    return {
        "image_image": round(float(between[between > -1].mean()), 3),
        "image_nearest": round(float(between.max(axis=1).mean()), 3),
        "caption_own_image": round(float(own.mean()), 3) if len(own) else 0.0,
        "caption_other": round(float(across.mean()), 3) if len(own) else 0.0,
        "caption_other_std": round(float(across.std()), 3) if len(own) else 0.0,
    }


def _items_of(index: Index, queries: Vectors, k: int) -> NDArray[np.int64]:
    return index.search(queries, k)[1]


def run(items: int, vectors: int, recipes: list[str], factories: list[str]) -> None:
    """Print a JSON line for each way of searching."""
    world = World(items, vectors)
    captions, owners = world.captions(2 * BATCH)
    # The build sees the first half, the measurement asks with the second.
    queries = captions[BATCH:]
    sizes = {"items": items, "rows": items * vectors, "dim": DIM, "queries": len(queries)}
    emit("search", way="data", **sizes, **statistics_of(world, captions, owners))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = write_store(folder / "store", world, captions[:BATCH], owners[:BATCH])
        begin = time.perf_counter()
        blocks = store.gallery().image_blocks
        exact = ExactIndex.streaming(lambda n: blocks("itc", n), items, (vectors, DIM))
        _, right = exact.search(queries, K)
        emit("search", way="exact", **sizes, batch500_ms=round(1e3 * (time.perf_counter() - begin)))
        for recipe in recipes:
            used = time.process_time()
            report = build_index(store, folder / "index", recipe=recipe)
            used = time.process_time() - used
            index = open_index(folder / "index")
            emit(
                "search",
                way=recipe,
                **sizes,
                **measure(partial(_items_of, index), queries, right),
                build_s=report.seconds,
                build_cpu_s=round(used, 2),
                recall_at_build=report.recall_at_10,
                effort=report.effort,
                bytes_per_row=round(report.bytes / report.rows, 1),
                threads=faiss.omp_get_max_threads(),
                peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            )
        for name, seconds, search in baselines(store, world, factories):
            found = measure(search, queries, right)
            emit("search", way=name, **sizes, **found, build_cpu_s=round(seconds, 2))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--vectors", type=int, default=1)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument(
        "--baselines", nargs="*", default=[NUMPY, "Flat", "HNSW32", "IVF{nlist},Flat"]
    )
    arguments = parser.parse_args()
    items = 600 if arguments.tiny else arguments.items
    recipes = arguments.recipes.split(",")
    run(items, arguments.vectors, recipes, arguments.baselines)


if __name__ == "__main__":
    main()
