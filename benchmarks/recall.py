"""How long exact recall takes and how much memory, against the full matrix with a sort.

    python -m benchmarks.recall                  31,783 images x 158,915 captions x 256, float16
    python -m benchmarks.recall --tiny           for a test
    python -m benchmarks.recall --device cuda

Flickr30k's size by default. The plain way (CLIP_benchmark, BLIP's `itm_eval`) holds the whole
similarity matrix and sorts each of its rows, so it runs at a smaller size, and ours beside it at
the same. Each case is a process of its own: peak memory is the operating system's figure.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from retrieval_engine.evaluate.ranks import Ints, Vectors
from retrieval_engine.evaluate.recall import recall


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement.

    Attributes:
        way: `ours` or `full-matrix`.
        images: number of images; each has `per_image` captions.
        vectors: vectors of an image (32 for BLIP-2).
        noise: of the captions around their images; 6 gives recalls like those of a real model.
    """

    way: str
    images: int
    per_image: int = 5
    vectors: int = 1
    width: int = 256
    noise: float = 6.0
    device: str = "cpu"


def data(case: Case) -> tuple[Vectors, Vectors, Ints]:
    """Synthetic unit vectors in float16, made in blocks so that making them costs no memory."""
    rng = np.random.default_rng(0)
    shape = (case.vectors, case.width)
    images = np.empty((case.images, *shape), np.float16)
    captions = np.empty((case.images * case.per_image, 1, case.width), np.float16)
    for start in range(0, case.images, 1024):
        block = rng.standard_normal((min(1024, case.images - start), *shape), dtype=np.float32)
        block /= np.linalg.norm(block, axis=-1, keepdims=True)
        images[start : start + len(block)] = block
        texts = block[:, 0].repeat(case.per_image, axis=0)
        texts = texts + case.noise / np.sqrt(case.width) * rng.standard_normal(texts.shape)
        texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
        captions[start * case.per_image :][: len(texts), 0] = texts
    return images, captions, np.arange(len(captions)) // case.per_image


def full_matrix(images: Vectors, captions: Vectors, caption_image: Ints) -> tuple[float, float]:
    """R@10 of both directions as the plain way has it: one matrix, every row sorted."""
    scores = torch.from_numpy(images[:, 0]).float() @ torch.from_numpy(captions[:, 0]).float().T
    matrix = scores.numpy()
    own = np.stack([np.argsort(row)[::-1][:10] for row in matrix])
    to_text = (caption_image[own] == np.arange(len(images))[:, None]).any(axis=1)
    found = np.stack([np.argsort(row)[::-1][:10] for row in matrix.T])
    to_image = (found == caption_image[:, None]).any(axis=1)
    return 100 * float(to_text.mean()), 100 * float(to_image.mean())


def ours(images: Vectors, captions: Vectors, caption_image: Ints, device: str) -> tuple[float, ...]:
    """R@10 of both directions, as `vlre eval --recall` computes it."""
    report = recall(images, captions, caption_image, device=device)
    return report.image_to_text.recall[10], report.text_to_image.recall[10]


def measure(case: Case) -> dict[str, object]:
    """Time one case in this process."""
    arrays = data(case)
    before = peak_bytes()
    run: Callable[[], tuple[float, ...]] = (
        (lambda: full_matrix(*arrays))
        if case.way == "full-matrix"
        else (lambda: ours(*arrays, device=case.device))
    )
    started = time.perf_counter()
    to_text, to_image = run()
    seconds = time.perf_counter() - started
    pairs = case.images**2 * case.per_image * case.vectors
    return asdict(case) | {
        "captions": case.images * case.per_image,
        "seconds": round(seconds, 3),
        "ns_per_pair": round(1e9 * seconds / pairs, 2),
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
        "image_to_text_recall@10": round(to_text, 3),
        "text_to_image_recall@10": round(to_image, 3),
    }


def peak_bytes() -> int:
    """Most memory this process has held, libraries and data included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def main() -> None:
    """Print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=31_783)
    parser.add_argument("--shared", type=int, default=5_000, help="images of the comparison")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="seconds, for a test")
    chosen = parser.parse_args()
    whole, shared = (60, 40) if chosen.tiny else (chosen.images, chosen.shared)
    case = Case(way="ours", images=shared, device=chosen.device)
    cases = [
        replace(case, way="full-matrix"),
        case,
        replace(case, images=whole),
        replace(case, images=min(1000, shared), vectors=32),
    ]
    for one in cases:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(json.dumps(pool.apply(measure, (one,)) | machine()), flush=True)


if __name__ == "__main__":
    main()
