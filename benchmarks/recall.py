"""How long exact recall takes and how much memory, against the full matrix with a sort.

    python -m benchmarks.recall                  31,783 images x 158,915 captions x 256, float16
    python -m benchmarks.recall --tiny           for a test
    python -m benchmarks.recall --device cuda

Flickr30k's size by default, read from a store as `vlre eval --recall` reads it. The plain way
(CLIP_benchmark, BLIP's `itm_eval`) holds the whole similarity matrix and sorts each of its rows, so
it runs at a smaller size, in turn with ours at the same size. Each measurement is a process of its
own: peak memory is the operating system's figure, libraries included.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import emit
from retrieval_engine.evaluate import gallery_recall
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.metrics.pair_scores import Ints, Vectors
from retrieval_engine.records import Caption, Feature, Item, Modality
from retrieval_engine.store import Gallery, StoreWriter, open_store

SPEC = EncoderSpec(family="external", checkpoint="benchmark", weights={"image": "", "text": ""})
BLOCK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One synthetic gallery.

    Attributes:
        images: number of images.
        per_image: captions of an image.
        vectors: vectors of an image (32 for BLIP-2).
        width: numbers in a vector.
        noise: of the captions around their images; 3.5 gives recalls like a real model's.
    """

    images: int
    per_image: int = 5
    vectors: int = 1
    width: int = 256
    noise: float = 3.5


def write_store(path: Path, size: Size) -> None:
    """Synthetic unit vectors in float16, a block at a time."""
    rng = np.random.default_rng(0)
    forms = {
        Modality.IMAGES: Feature(
            name="itc", shape=(size.vectors, size.width), dtype="float16", fingerprint="i"
        ),
        Modality.CAPTIONS: Feature(
            name="itc", shape=(1, size.width), dtype="float16", fingerprint="t"
        ),
    }
    with StoreWriter.open(
        path, spec=SPEC, features={side: [form] for side, form in forms.items()}
    ) as writer:
        part = writer.part()
        for start in range(0, size.images, BLOCK):
            n = min(BLOCK, size.images - start)
            images = unit(rng.standard_normal((n, size.vectors, size.width), dtype=np.float32))
            texts = images[:, :1].repeat(size.per_image, axis=0)
            spread = size.noise / np.sqrt(size.width)
            texts = unit(texts + spread * rng.standard_normal(texts.shape, dtype=np.float32))
            items = [item(start + i, size.per_image) for i in range(n)]
            keys = [f"{start + i:064x}" for i in range(n)]
            part.add(Modality.IMAGES, keys, {"itc": images.astype(np.float16)})
            captions = [caption.key for one in items for caption in one.captions]
            part.add(Modality.CAPTIONS, captions, {"itc": texts.astype(np.float16)})
            part.add_items("folder:/benchmark", zip(items, keys, strict=True))
        part.commit()


def unit(rows: Vectors) -> Vectors:
    """Rows of length one."""
    scaled: Vectors = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return scaled


def item(number: int, captions: int) -> Item:
    """An item with captions of its own."""
    texts = (Caption(id=f"{number}#{k}", text=f"caption {k} of {number}") for k in range(captions))
    return Item(id=f"{number}.jpg", uri=f"/{number}.jpg", captions=tuple(texts))


def full_matrix(gallery: Gallery) -> tuple[float, float]:
    """R@10 of both directions as the plain way has it: one matrix, every row sorted."""
    images, captions = gallery.images("itc")[:, 0], gallery.captions("itc")[:, 0]
    matrix = (torch.from_numpy(images) @ torch.from_numpy(captions).T).numpy()
    own: Ints = gallery.caption_image
    nearest = np.stack([np.argsort(row)[::-1][:10] for row in matrix])
    to_text = (own[nearest] == np.arange(len(images))[:, None]).any(axis=1)
    nearest = np.stack([np.argsort(row)[::-1][:10] for row in matrix.T])
    to_image = (nearest == own[:, None]).any(axis=1)
    return 100 * float(to_text.mean()), 100 * float(to_image.mean())


def ours(gallery: Gallery, *, device: str) -> tuple[float, float]:
    """R@10 of both directions, as `vlre eval --recall` computes it."""
    report = gallery_recall(gallery, device=device)
    return report.image_to_text.recall[10], report.text_to_image.recall[10]


def measure(way: str, path: Path, device: str) -> dict[str, float]:
    """Time one way in this process."""
    store = open_store(path)
    run = full_matrix if way == "full-matrix" else partial(ours, device=device)
    started = time.perf_counter()
    to_text, to_image = run(store.gallery())
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "image_to_text_recall@10": round(to_text, 3),
        "text_to_image_recall@10": round(to_image, 3),
    }


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What the function gives in a new process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def in_this_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What the function gives here: quick, for a test; peak memory then means nothing."""
    return function(*arguments)


def compare(size: Size, ways: list[str], *, repeats: int, device: str, tiny: bool) -> None:
    """Print a JSON line a way: medians over runs that take turns."""
    call = in_this_process if tiny else in_fresh_process
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        call(write_store, path, size)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way in ways:
                found[way].append(call(measure, way, path, device))
    pairs = size.images**2 * size.per_image * size.vectors
    for way, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        emit(
            "recall",
            way=way,
            device=device if way == "vlre" else "cpu",
            **asdict(size),
            captions=size.images * size.per_image,
            repeats=repeats,
            **(runs[0] | {"seconds": round(seconds, 3)}),
            ns_per_pair=round(1e9 * seconds / pairs, 2),
            threads=torch.get_num_threads(),
        )


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=31_783)
    parser.add_argument("--shared", type=int, default=5_000, help="images of the comparison")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="seconds, for a test")
    chosen = parser.parse_args()
    whole, shared = (60, 40) if chosen.tiny else (chosen.images, chosen.shared)
    size = Size(images=shared)
    sizes = {
        size: ["full-matrix", "vlre"],
        replace(size, images=whole): ["vlre"],
        replace(size, images=min(2000, shared), vectors=32, noise=1.0): ["vlre"],
    }
    for one, ways in sizes.items():
        repeats = 3 if len(ways) > 1 and not chosen.tiny else 1
        compare(one, ways, repeats=repeats, device=chosen.device, tiny=chosen.tiny)


if __name__ == "__main__":
    main()
