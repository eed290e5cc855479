"""What training from the cache saves against the same training from the pictures.

    python -m benchmarks.finetune                      BLIP ViT-B/16-384: captions, retrieval with ITM
    python -m benchmarks.finetune --what blip2         BLIP-2 ViT-g/14-224 with its Q-Former
    python -m benchmarks.finetune --tiny               for a test

Random weights of the published sizes, float32, the vision tower frozen in both, the same batches.
Both ways alternate in one process. Speed is never without the losses beside it: the largest
relative difference of a loss between the two ways must be rounding. `share_gone` is the part of
what pictures and tower take in a step from pixels that is gone from a step from the cache.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import checkpoints
from benchmarks.report import emit
from benchmarks.rerank import captions
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.models import open_encoder
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.progress import Silent
from retrieval_engine.train.finetune import Task, configure
from retrieval_engine.train.finetune.trainer import FinetuneRun

KINDS = ("caption", "caption5", "retrieval", "blip2")


def pictures(folder: Path, n: int) -> Path:
    """JPEG files of 500x375 with five captions each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    texts = captions(5 * n)
    for i in range(n):
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i}.jpg", quality=90)
        (folder / f"{i}.txt").write_text("\n".join(texts[5 * i : 5 * i + 5]) + "\n")
    return folder


def make_store(kind: str, root: Path, *, images: int, tiny: bool) -> Path:
    """A random checkpoint, and a store of its float32 vision states."""
    if kind == "blip2":
        model = checkpoints.blip2(root / "model", tiny=tiny)
    elif kind == "retrieval":
        model = checkpoints.blip(root / "model", tiny=tiny)
    else:
        model = checkpoints.blip_captioner(root / "model", tiny=tiny)
    opener: Any = open_captioner if kind.startswith("caption") else open_encoder
    encoder = opener(str(model), device="cpu", dtype="float32")
    options = EncodeOptions(features=("tokens",), store_dtype="float32", batch_size=4)
    source = f"folder:{pictures(root / 'pictures', images)}"
    encode(source, root / "store", encoder=encoder, options=options)
    return root / "store"


class Way:
    """One of the two ways to train, step by step."""

    def __init__(self, kind: str, store: Path, out: Path, *, batch: int, pixels: bool) -> None:
        task = Task.CAPTION if kind.startswith("caption") else Task.RETRIEVAL
        config = configure(
            task,
            store=str(store),
            batch_size=batch,
            captions_per_image=5 if kind == "caption5" else 1,
            from_pixels=pixels,
            freeze_vision=pixels,
            augment=False,
            device="cpu",
            dtype="float32",
        )
        self.run = FinetuneRun(config, out, Silent())
        self.run.learner.model.eval()  # without dropout both see the same numbers
        self.seeing = 0.0
        loader: Any = self.run.loader
        plain = loader.states

        def timed(*given: Any) -> Any:
            start = time.perf_counter()
            found = plain(*given)
            self.seeing += time.perf_counter() - start
            return found

        loader.states = timed

    def step(self, number: int) -> tuple[float, float, dict[str, float]]:
        """Seconds of a step, seconds of them for pictures and states, and the losses."""
        self.seeing = 0.0
        start = time.perf_counter()
        _, batch = self.run.batch(number)
        loaded = time.perf_counter()
        losses = self.run.objective.step(batch, number, along=0.5, scale=1.0)
        end = time.perf_counter()
        self.run.optimiser.zero_grad(set_to_none=True)
        return end - start, loaded - start + self.seeing, losses


def measure(kind: str, root: Path, *, batch: int, steps: int, tiny: bool) -> dict[str, object]:
    """Alternate the two ways over the same batches."""
    store = make_store(kind, root, images=batch + 3, tiny=tiny)
    cached = Way(kind, store, root / "cached", batch=batch, pixels=False)
    pixels = Way(kind, store, root / "pixels", batch=batch, pixels=True)
    rows = [(cached.step(step), pixels.step(step)) for step in range(steps + 1)]
    for way in (cached, pixels):
        way.run.close()
    worst = max(
        abs(a[2][name] - b[2][name]) / max(abs(b[2][name]), 1e-9) for a, b in rows for name in b[2]
    )
    from_cache = statistics.median(a[0] for a, _ in rows[1:])
    from_pixels = statistics.median(b[0] for _, b in rows[1:])
    share = statistics.median(b[1] for _, b in rows[1:])
    return {
        "batch": batch,
        "steps": steps,
        "cache_step_s": round(from_cache, 3),
        "pixels_step_s": round(from_pixels, 3),
        "speedup": round(from_pixels / from_cache, 2),
        "tower_and_decode_s": round(share, 3),
        "share_gone": round((from_pixels - from_cache) / share, 3),
        "largest_loss_difference": worst,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", choices=KINDS, action="append")
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    given = parser.parse_args()
    for kind in given.what or KINDS[:3]:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(
                kind, Path(folder), batch=given.batch, steps=given.steps, tiny=given.tiny
            )
        emit("finetune", what=kind, tiny=given.tiny, **found)


if __name__ == "__main__":
    main()
