"""What a GPU makes of a second: encoding, matching, captions, heads, recall, and where it goes.

    python -m benchmarks.gpu                             every part, 150 s at most
    python -m benchmarks.gpu encode rerank --seconds 60  some of them
    python -m benchmarks.gpu --tiny --device cpu         for a test

Random weights of the real sizes, made on the device. Every part prints its own JSON lines and
fails alone: an error is a line too. Quality beside speed: cosine to float32 without TF32. `tower`
and `features` are the model with its pixels on the device: what `encode_images` could reach.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import checkpoints, heads
from benchmarks.gpu_ways import Clock, failed, profile, variants
from benchmarks.report import emit
from benchmarks.rerank import captions
from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.generating import write_captions
from retrieval_engine.encoding import Embeddings, import_embeddings
from retrieval_engine.encoding.vector_set import Vectors
from retrieval_engine.heads import HeadKind
from retrieval_engine.metrics.recall import recall
from retrieval_engine.models import open_encoder
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.models.device import on_device
from retrieval_engine.records import Modality
from retrieval_engine.train.head import HeadRecipe

_MAKE = {
    "blip": checkpoints.blip,
    "blip2": checkpoints.blip2,
    "captioner": checkpoints.blip_captioner,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where it runs and at what size; `folder` is for checkpoints and stores."""

    clock: Clock
    tiny: bool
    folder: Path

    def open(self, name: str) -> Any:
        """An encoder or captioner of random weights, made on the device when first asked for."""
        path, device = self.folder / name, self.clock.device
        if name in _MAKE and not path.exists():
            with device:
                _MAKE[name](path, tiny=self.tiny)
        model = str(path) if name in _MAKE else name
        dtype = "float16" if self.clock.on_cuda else "float32"
        opener = open_captioner if name == "captioner" else open_encoder
        return opener(model, device=device.type, dtype=dtype)


def noise(encoder: Any, n: int) -> Any:
    """(n, s, s, 3) uint8 pixels."""
    side = encoder.preprocessor.image_size
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def encode(bench: Bench) -> None:
    """`encode_images` at some batch sizes, beside the model alone and its variants."""
    for name in ("vlre-photo",) if bench.tiny else ("vlre-photo", "blip", "blip2"):
        if bench.clock.is_over():
            return
        began = time.perf_counter()
        encoder = bench.open(name)
        opened = round(time.perf_counter() - began, 1)
        usual = 2 if bench.tiny else encoder.default_batch_size
        pixels = noise(encoder, 2 * usual)
        rates = {}
        for what, n in (("itc", usual // 2), ("itc", usual), ("itc", 2 * usual), ("tokens", usual)):
            took = bench.clock.seconds(partial(encoder.encode_images, pixels[:n], [what]))
            rates[f"{what} {n}"] = round(n / took, 1)
        said = {"model": name, "default_batch_size": usual}
        emit("gpu-encode", **said, open_s=opened, dtype=encoder.arithmetic, images_per_s=rates)
        variants(bench.clock, encoder, said, pixels[:usual], compiled=name == "blip2")
        del encoder


def texts(bench: Bench) -> None:
    """Captions a second through `encode_texts`, and the tokens alone."""
    encoder = bench.open("blip")
    some = captions(50 if bench.tiny else 8192)
    whole = bench.clock.seconds(partial(encoder.encode_texts, some, ["itc"]))
    tokens = bench.clock.seconds(partial(encoder.tokenize, some), 1)
    rates = {"encode": round(len(some) / whole), "tokens_alone": round(len(some) / tokens)}
    emit("gpu-texts", model="blip", texts=len(some), texts_per_s=rates)


def rerank(bench: Bench) -> None:
    """Pairs a second of the matcher, at some numbers of captions an image and of pairs a block."""
    encoder = bench.open("blip")
    shape = encoder.features(Modality.IMAGES)["tokens"].shape
    images = 4 if bench.tiny else 128
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((images, *shape), dtype=np.float32).astype(np.float16)
    some = captions(8 * images)  # each is asked of several images, as in an evaluation
    matcher = encoder.matcher()
    for k in (4,) if bench.tiny else (32, 128):
        asked = rng.integers(len(some), size=images * k)
        pairs = np.stack([np.repeat(np.arange(images), k), asked], axis=1)
        work = partial(matcher.score_pairs, tokens.__getitem__, some, pairs)
        rates = {}
        for matcher.texts_at_once in (512, 1024, 2048, 4096):
            rates[matcher.texts_at_once] = round(len(pairs) / bench.clock.seconds(work))
        emit("gpu-rerank", model="blip", images=images, k=k, pairs_per_s=rates)
        matcher.texts_at_once = 1024
        if k == 128:
            profile(bench.clock, f"rerank {k}", work)
    x = on_device(tokens[:4], bench.clock.device).to(encoder.dtype)
    with torch.inference_mode():
        took = bench.clock.seconds(partial(matcher.cross.keys_values, x))
    emit("gpu-keys-values", images_per_s=round(len(x) / took))


def caption(bench: Bench) -> None:
    """Captions a second, from stored states and from pixels."""
    model = bench.open("captioner")
    sizes = (2,) if bench.tiny else (128, 384)
    pixels = noise(model, max(sizes))
    length = 8 if bench.tiny else 15
    for beams in (1, 3):
        options = DecodingOptions(beams=beams, max_length=length, min_length=length)
        for n in sizes:
            see = partial(model.encode_images, pixels[:n], ["tokens"])
            names = [str(i) for i in range(n)]
            write = partial(_written, model, names, options)
            stored = bench.clock.seconds(partial(write, see()["tokens"]))
            whole = bench.clock.seconds(partial(_seen_and_written, see, write))
            rates = {"stored": round(n / stored, 1), "whole": round(n / whole, 1)}
            emit("gpu-caption", beams=beams, batch=n, tokens=length, captions_per_s=rates)
            if n == 384:
                profile(bench.clock, f"caption, beams {beams}", partial(write, see()["tokens"]))


def _written(model: Any, names: list[str], options: DecodingOptions, tokens: Any) -> object:
    return write_captions(model, torch.from_numpy(tokens), names, options)


def _seen_and_written(see: Callable[[], Any], write: Callable[[Any], object]) -> object:
    return write(see()["tokens"])


def exact(bench: Bench) -> None:
    """Seconds of exact recall in both directions, on the device and on the CPU."""
    rng = np.random.default_rng(0)
    for images in (40,) if bench.tiny else (1000, 5000, 25_000):
        rows = rng.standard_normal((images, 256), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        owner = np.repeat(np.arange(images), 5)
        words = rows[owner] + 3.5 / 16 * rng.standard_normal((len(owner), 256), dtype=np.float32)
        words /= np.linalg.norm(words, axis=1, keepdims=True)
        work = partial(recall, rows.astype(np.float16), words.astype(np.float16), owner)
        took = {}
        for device in {bench.clock.device.type, "cpu" if images < 25_000 else "cuda"}:
            seconds = bench.clock.seconds(partial(work, device=device), 1)
            took[device] = round(seconds, 4)
        emit("gpu-recall", images=images, captions=len(owner), seconds=took)


def head(bench: Bench) -> None:
    """Seconds until a head is as good as the published loop's, and how good it is in the end."""
    train, held, width = (400, 50, 32) if bench.tiny else (100_000, 1000, 256)
    images, words = heads.make_features(train + held, (width, width), 2.2)
    store = bench.folder / "pairs"
    for split, rows in (("train", slice(0, train)), ("val", slice(train, None))):
        pairs = Embeddings(
            images=Vectors(name="images", rows=images[rows]),
            texts=Vectors(name="texts", rows=words[rows]),
            caption_image=np.arange(len(images[rows])),
        )
        import_embeddings(pairs, store, name="made", split=split)
    theirs_s, theirs = heads.seed_loop(images, words, train, width, 5)
    goal = heads.mean_recall(theirs, images[train:], words[train:])
    for kind in HeadKind:
        out, recipe = bench.folder / kind, HeadRecipe(kind=kind)
        reached, whole, mine = heads.ours(store, out, recipe, goal, bench.clock.device.type)
        took = {"published": theirs_s, "until_as_good": reached, "whole": whole}
        seconds = {n: None if math.isnan(s) else round(s, 2) for n, s in took.items()}
        emit(
            "gpu-head",
            kind=kind.value,
            pairs=train,
            width=width,
            goal=round(goal, 2),
            best=round(heads.mean_recall(mine, images[train:], words[train:]), 2),
            seconds=seconds,
        )


PARTS = {
    "encode": encode,
    "rerank": rerank,
    "caption": caption,
    "recall": exact,
    "texts": texts,
    "head": head,
}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=150)
    asked = parser.parse_args()
    clock = Clock(asked.device, tiny=asked.tiny, seconds=asked.seconds)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(clock=clock, tiny=asked.tiny, folder=Path(scratch))
        for name in asked.parts or PARTS:
            began = time.perf_counter()
            try:
                if clock.is_over():
                    raise TimeoutError("no time was left")
                PARTS[name](bench)
            except Exception as error:  # noqa: BLE001  one part that fails costs no other
                failed(name, error)
            emit("gpu-part", of=name, seconds=round(time.perf_counter() - began, 1))
            if clock.on_cuda:
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
