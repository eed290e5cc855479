"""What decoding at a DCT scale saves a JPEG, and what it costs the vectors (`--fast-decode`).

    python -m benchmarks.decode                     drawn scenes; BLIP ViT-B/16-384 (random), vlre-tiny, vlre-photo
    python -m benchmarks.decode --source folder:photographs --model vlre-photo
    python -m benchmarks.decode --tiny              for a test

Pictures of the source are enlarged to 4000x3000, given the noise of a sensor, and saved at quality
90; the same at 500x375 without noise. One run decodes each in both ways, alternating, and reports
the processor's milliseconds of decoding and resizing and the cosines between both ways' vectors.
Where a model always decodes so (vlre-photo), the plain way is that model without it.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import checkpoints
from benchmarks.report import emit
from retrieval_engine.models import open_encoder
from retrieval_engine.sources import open_source, read_item
from retrieval_engine.sources.decode import decode

LARGE, SMALL = (4000, 3000), (500, 375)
_NOISE = 4  # standard deviation, of 255


def pictures(source: str, count: int, size: tuple[int, int]) -> Iterator[bytes]:
    """JPEGs of this size of the first pictures of a source."""
    rng = np.random.default_rng(0)
    for item in islice(open_source(source).items(), count):
        picture = decode(read_item(item)).resize(size, Image.Resampling.LANCZOS)
        if size == LARGE:
            noise = rng.standard_normal((*size[::-1], 1), dtype=np.float32) * _NOISE
            shown = np.asarray(picture) + noise
            picture = Image.fromarray(shown.clip(0, 255).astype(np.uint8))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=90)
        yield data.getvalue()


def measure(encoder: Any, files: list[bytes], rounds: int) -> dict[str, object]:
    """Milliseconds a picture of both ways, and cosines between their vectors."""
    ways = {name: replace(encoder.preprocessor, draft=name == "fast") for name in ("plain", "fast")}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    seen: dict[str, np.ndarray] = {}
    for _ in range(rounds):
        for name, look in ways.items():
            began = time.process_time()
            pixels = [look.pixels(decode(data, least_side=look.least_side)) for data in files]
            spent[name].append(1e3 * (time.process_time() - began) / len(files))
            seen[name] = np.stack(pixels)
    vectors = {
        name: np.concatenate(
            [
                encoder.encode_images(pixels[i : i + 8], ["itc"])["itc"]
                for i in range(0, len(pixels), 8)
            ]
        )
        for name, pixels in seen.items()
    }
    cosines = (vectors["plain"] * vectors["fast"]).sum(-1)
    plain, fast = (statistics.median(spent[name]) for name in ("plain", "fast"))
    return {
        "plain_cpu_ms": round(plain, 2),
        "fast_cpu_ms": round(fast, 2),
        "ratio": round(plain / fast, 2),
        "pixels_differ_mean": round(
            float(np.abs(seen["plain"].astype(int) - seen["fast"]).mean()), 3
        ),
        "cosine_mean": round(float(cosines.mean()), 5),
        "cosine_min": round(float(cosines.min()), 5),
    }


def main() -> None:
    """Print one JSON line for each model and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", action="append")
    parser.add_argument("--source", default="scenes:24?seed=77&size=512")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    count, rounds = (2, 1) if given.tiny else (given.images, given.rounds)
    models = ["vlre-tiny"] if given.tiny else given.model or ["random", "vlre-tiny", "vlre-photo"]
    with tempfile.TemporaryDirectory() as scratch:
        for size in (LARGE, SMALL):
            files = list(pictures(given.source, count, size))
            for model in models:
                path = str(checkpoints.blip(Path(scratch))) if model == "random" else model
                emit(
                    "decode",
                    model="blip-vit-b16-384-random" if model == "random" else model,
                    source=given.source.partition(":")[0],
                    size=list(size),
                    bytes=round(statistics.mean(map(len, files))),
                    images=len(files),
                    rounds=rounds,
                    **measure(open_encoder(path, device="cpu", dtype="float32"), files, rounds),
                )


if __name__ == "__main__":
    main()
