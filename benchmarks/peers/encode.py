"""Pictures a second with one BLIP tower (ViT-B/16 at 384): from files to vectors.

A case is a number of drawn scenes, JPEGs of 500 x 375. Loading the model is not measured, and every
side has warmed up on one picture. Ours also hashes the files and writes a store. transformers opens
BLIP with eager attention only, and its image processor is that of the environment: PIL's, or
torchvision's where that is installed, whose pixels differ a little.
"""

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.turns import Comparison, Figures, Side, watched

TINY = 6
BATCH = 32


def draw(folder: Path, n: int) -> None:
    """Drawn scenes as JPEGs of 500 x 375, quality 90; one more in a folder beside, to warm up."""
    from PIL import Image

    from retrieval_engine.sources import open_source, read_item

    folder.mkdir()
    warm = folder.with_name("warm")
    warm.mkdir()
    for i, item in enumerate(open_source(f"scenes:{n + 1}?seed=5").items()):
        import io

        picture = Image.open(io.BytesIO(read_item(item))).convert("RGB").resize((500, 375))
        picture.save((folder if i < n else warm) / f"{i:05}.jpg", quality=90)


def prepare(work: Path, case: str) -> None:
    """Pictures and a BLIP of random weights."""
    from transformers import BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    from benchmarks import checkpoints

    tiny = int(case) <= TINY
    checkpoints.blip(work / "model", tiny=tiny)
    side = 32 if tiny else 384
    images = BlipImageProcessorPil(size={"height": side, "width": side})
    BlipProcessor(images, checkpoints.tokenizer()).save_pretrained(work / "model")
    images.save_pretrained(work / "model")
    draw(work / "pictures", int(case))


def ours(work: Path, case: str, *, dtype: str, name: str) -> Figures:
    """What `vlre encode` does between opening the model and its report."""
    from retrieval_engine.encoding.from_source import EncodeOptions, encode
    from retrieval_engine.models import open_encoder
    from retrieval_engine.store import open_store

    encoder = open_encoder(str(work / "model"), device="cpu", dtype=dtype)
    options = EncodeOptions(features=("itc",), store_dtype="float32", overwrite=True)
    encode(f"folder:{work / 'warm'}", work / "warm-store", encoder=encoder, options=options)
    with watched() as watch:
        encode(f"folder:{work / 'pictures'}", work / "store", encoder=encoder, options=options)
    gallery = open_store(work / "store").gallery()
    order = np.argsort([Path(item).name for item in gallery.ids])
    return kept(work, name, gallery.images("itc")[order, 0], watch.figures)


def kept(work: Path, name: str, vectors: np.ndarray, figures: Figures) -> Figures:
    """Leave the vectors for `judge`, at length one, and tell the speed."""
    vectors = np.asarray(vectors, dtype=np.float32)
    np.save(work / f"{name}.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return figures | {"images_per_s": len(vectors) / figures["seconds"]}


def in_batches(
    work: Path, name: str, batch: int, encode: Callable[[list[Any]], np.ndarray]
) -> Figures:
    """Time what turns opened pictures into vectors, over the folder in batches of a size."""
    from PIL import Image

    def run(files: Iterable[Path]) -> np.ndarray:
        paths = sorted(files)
        parts = [paths[i : i + batch] for i in range(0, len(paths), batch)]
        return np.concatenate([encode([Image.open(p).convert("RGB") for p in s]) for s in parts])

    run((work / "warm").glob("*.jpg"))
    with watched() as watch:
        vectors = run((work / "pictures").glob("*.jpg"))
    return kept(work, name, vectors, watch.figures)


def transformers(work: Path, case: str, *, batch: int, name: str) -> Figures:
    """`BlipForImageTextRetrieval` as its documentation has it, some pictures at a time."""
    import torch
    from transformers import AutoImageProcessor, BlipForImageTextRetrieval

    model = BlipForImageTextRetrieval.from_pretrained(work / "model").eval()
    processor = AutoImageProcessor.from_pretrained(work / "model")

    def encode(pictures: list[Any]) -> np.ndarray:
        with torch.no_grad():
            pixels = processor(pictures, return_tensors="pt")["pixel_values"]
            state = model.vision_model(pixels).last_hidden_state[:, 0]
            vectors: np.ndarray = model.vision_proj(state).numpy()
        return vectors

    return in_batches(work, name, batch, encode)


def judge(work: Path, case: str, side: str) -> Figures:
    """Smallest cosine to our float32 vectors, and how many pictures have the same nearest one."""
    ours_, found = np.load(work / "vlre.npy"), np.load(work / f"{side}.npy")

    def nearest(vectors: np.ndarray) -> np.ndarray:
        scores = vectors @ vectors.T - 2 * np.eye(len(vectors))
        best: np.ndarray = scores.argmax(axis=1)
        return best

    shutil.rmtree(work / "store", ignore_errors=True)
    return {
        "smallest_cosine": round(float((ours_ * found).sum(axis=1).min()), 6),
        "same_nearest": round(float((nearest(ours_) == nearest(found)).mean()), 3),
    }


LOOP, BATCHES = "transformers, one by one", f"transformers, {BATCH} at once"
COMPARISON = Comparison(
    prepare=prepare,
    judge=judge,
    sides={
        "vlre": Side(run=partial(ours, dtype="float32", name="vlre")),
        "vlre int8": Side(run=partial(ours, dtype="int8", name="vlre int8")),
        LOOP: Side(run=partial(transformers, batch=1, name=LOOP), package="transformers"),
        BATCHES: Side(run=partial(transformers, batch=BATCH, name=BATCHES), package="transformers"),
    },
    cases=("12",),
    tiny=str(TINY),
)
