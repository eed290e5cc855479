"""What the published sizes take: seconds to open, images and pairs per second, peak memory.

    python -m benchmarks.full_size                      ViT-B/16-384, ViT-L/16-384, ViT-g/14-224
    python -m benchmarks.full_size --models vit-b       one of them
    python -m benchmarks.full_size --tiny               for a test

Weights are random: they say nothing about quality, and everything about speed and memory. Each
model is a process of its own, so that its peak memory is its own; libraries are included. The
quality beside speed is the largest difference of a cosine from float32, on the same pixels.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import checkpoints
from benchmarks.report import emit
from benchmarks.rerank import captions
from retrieval_engine.models import open_encoder

MODELS = ("vit-b", "vit-l", "vit-g")


def write(model: str, directory: Path, *, tiny: bool) -> Path:
    """Write a random checkpoint of one size."""
    if model == "vit-g":
        return checkpoints.blip2(directory, tiny=tiny)
    return checkpoints.blip(directory, large=model == "vit-l", tiny=tiny)


def measure(model: str, path: Path, device: str, images: int, k: int) -> dict[str, object]:
    """Open, encode `images` pictures and their captions, re-rank `k` captions for each."""
    start = time.perf_counter()
    encoder = open_encoder(str(path), device=device)
    opened = time.perf_counter() - start
    side = encoder.preprocessor.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    encoder.encode_images(pixels[:1], ["itc"])  # BLIP-2 loads its vision tower when it is needed
    start = time.perf_counter()
    found = encoder.encode_images(pixels, ["itc", "tokens"])
    encoded = time.perf_counter() - start
    texts = captions(k)
    start = time.perf_counter()
    encoder.encode_texts(texts, ["itc"])
    told = time.perf_counter() - start
    pairs = np.array([(i, j) for i in range(images) for j in range(k)])
    matcher = encoder.matcher()
    matcher.score_pairs(lambda rows: found["tokens"][rows], texts, pairs[:2])
    start = time.perf_counter()
    matcher.score_pairs(lambda rows: found["tokens"][rows], texts, pairs)
    scored = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    exact = open_encoder(str(path), device=device, dtype="float32")
    reference = exact.encode_images(pixels[:1], ["itc"])["itc"]
    return {
        "model": model,
        "dtype": encoder.spec.dtype,
        "open_s": round(opened, 2),
        "images_per_s": round(images / encoded, 3),
        "captions_per_s": round(k / told, 1),
        "pairs_per_s": round(len(pairs) / scored, 2),
        "peak_bytes": peak,
        "tokens_bytes_per_image": int(found["tokens"][0].size * 2),
        "largest_cosine_loss": float(1 - (reference * found["itc"][:1]).sum(-1).min()),
        "images": images,
        "k": k,
    }


def main() -> None:
    """Measure each model in its own process and print a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    images, k = (2, 4) if arguments.tiny else (arguments.images, arguments.k)
    # A forked process begins at once, and with our memory in its peak.
    way = multiprocessing.get_context("fork" if arguments.tiny else "spawn")
    for model in arguments.models:
        with (
            tempfile.TemporaryDirectory() as scratch,
            way.Pool(1) as pool,
        ):
            path = write(model, Path(scratch), tiny=arguments.tiny)
            emit(
                "full_size",
                **pool.apply(measure, (model, path, arguments.device, images, k)),
            )


if __name__ == "__main__":
    main()
