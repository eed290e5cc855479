"""How much of the time of `vlre encode` is pure model time, for a model of each family.

    python -m benchmarks.steady                     random weights of the usual sizes, and vlre-photo
    python -m benchmarks.steady --family clip --images 64
    python -m benchmarks.steady --tiny              for a test

`overlap` is the time that the model alone takes for the same batches, already decoded, over the
time of the whole encode: reading, decoding, writing, opening and closing the store included. Both
alternate in one run; medians. `cpu_share` is the same of the processor's seconds: what is missing
to 1 is work that is not the model's, whoever waits for whom; `ideal` is the overlap if that work
filled the other cores without a gap. Pictures are JPEGs of 500x375, five captions each.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizerFast,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
)

from benchmarks import checkpoints
from benchmarks.encode import write_pictures
from benchmarks.report import emit
from retrieval_engine.encoding import EncodeOptions, encode
from retrieval_engine.encoding.steps import Batch, computed
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.records import Modality
from retrieval_engine.sources.decode import decode

WORDS = [*"▁abcdefghijklmnopqrstuvwxyz.,"]
CAPTIONS = ["a dog", "two birds on a tree", "a man rides a red horse along the beach at dusk"]
FEATURES = ("itc", "pooled")


def clip(folder: Path) -> Path:
    """A ViT-B/32 of random weights."""
    torch.manual_seed(0)
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    words = ["<|startoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in WORDS[1:])]
    vocabulary = {word: i for i, word in enumerate([*words, "<|endoftext|>"])}
    CLIPTokenizerFast(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    """A base model of 16-pixel patches at 224, of random weights."""
    torch.manual_seed(0)
    SiglipModel(SiglipConfig()).save_pretrained(folder)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    Siglip2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


MODELS: dict[str, Callable[[Path], Path | str]] = {
    "vlre-photo": lambda folder: "vlre-photo",
    "clip": clip,
    "siglip": siglip,
    "blip": checkpoints.blip,
    "blip2": checkpoints.blip2,
}


def alone(encoder: Encoder, pixels: np.ndarray, texts: list[str]) -> None:
    """The model's work of an encode, and nothing else."""
    images, captions = (
        Batch(
            modality=m,
            keys=[str(i) for i in range(len(rows))],
            inputs=rows,
            forms=[encoder.features(m)[name] for name in FEATURES],
        )
        for m, rows in ((Modality.IMAGES, pixels), (Modality.CAPTIONS, texts))
    )
    batches = [*images.pieces(encoder.default_batch_size), captions]
    for _ in computed(iter(batches), encoder):
        pass


def spent(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(encoder: Encoder, folder: Path, rounds: int) -> dict[str, object]:
    """Shares of pure model time in encodes of a folder."""
    look = encoder.preprocessor
    files = sorted(folder.glob("*.jpg"))
    pixels = np.stack(
        [look.pixels(decode(f.read_bytes(), least_side=look.least_side)) for f in files]
    )
    texts = list(
        dict.fromkeys("".join(f.with_suffix(".txt").read_text() for f in files).split("\n"))
    )
    options = EncodeOptions(features=FEATURES)
    alone(encoder, pixels[: encoder.default_batch_size], texts[:64])
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    walls, shares, ideals, rates = [], [], [], []
    with tempfile.TemporaryDirectory() as stores:
        for number in range(rounds):
            whole = partial(
                encode, f"folder:{folder}", f"{stores}/{number}", encoder=encoder, options=options
            )
            model_wall, model_cpu = spent(lambda: alone(encoder, pixels, texts))
            wall, cpu = spent(whole)
            walls.append(model_wall / wall)
            shares.append(model_cpu / cpu)
            least = max(model_cpu / threads, cpu / cores)
            ideals.append(model_cpu / threads / least)
            rates.append(len(files) / wall)
    return {
        "overlap": round(statistics.median(walls), 3),
        "cpu_share": round(statistics.median(shares), 3),
        "ideal": round(statistics.median(ideals), 3),
        "images_per_s": round(statistics.median(rates), 2),
    }


def main() -> None:
    """Print one JSON line for each family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--family", action="append", choices=list(MODELS))
    parser.add_argument("--images", type=int, help="Default: about half a minute of the model.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    usual = {"vlre-photo": 1500, "clip": 300, "siglip": 80, "blip": 32, "blip2": 6}
    for family in ["vlre-photo"] if given.tiny else given.family or list(MODELS):
        count = 8 if given.tiny else given.images or usual[family]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "pictures"
            folder.mkdir()
            write_pictures(folder, count)
            for i in range(count):
                lines = [f"{CAPTIONS[n % 3]} {'abcdefgh'[n]} {i}" for n in range(5)]
                (folder / f"{i:05}.txt").write_text("\n".join(lines) + "\n")
            model = str(MODELS[family](Path(scratch) / "model"))
            encoder = open_encoder(model, device="cpu", dtype=given.dtype)
            emit(
                "steady",
                family=family,
                dtype=encoder.spec.dtype,
                images=count,
                rounds=given.rounds,
                threads=torch.get_num_threads(),
                **measure(encoder, folder, 1 if given.tiny else given.rounds),
            )


if __name__ == "__main__":
    main()
