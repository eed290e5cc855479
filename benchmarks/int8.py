"""What `--dtype int8` costs a model on pictures with captions, beside float32 on the same.

    python -m benchmarks.int8 --model Salesforce/blip-itm-base-coco --source coco:…
    python -m benchmarks.int8            vlre-tiny on 500 drawn scenes
    python -m benchmarks.int8 --tiny     for a test

Cosines of pictures, how many of the first ten of a caption are the same, recall, and seconds of the
processor a picture. How much quicker a large tower is: `python -m benchmarks.encode`.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import emit
from retrieval_engine.encoding.from_source import encode
from retrieval_engine.evaluate.store_recall import gallery_recall
from retrieval_engine.models import open_encoder
from retrieval_engine.store import open_store

TOP = 10


def measure(
    source: str, store: Path, model: str, dtype: str
) -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, object]]:
    """Pictures' vectors (n, v, d), the first ten of each caption (m, 10), and recall."""
    encoder = open_encoder(model, device="cpu", dtype=dtype)
    began = time.process_time()
    encode(source, store, encoder=encoder)
    seconds = time.process_time() - began
    gallery = open_store(store).gallery(None)
    images = np.concatenate([block for _, block in gallery.image_blocks("itc", 512)])
    captions = np.asarray(gallery.captions("itc"), dtype=np.float32)[:, 0]
    scores = np.einsum("md,nvd->mnv", captions, images.astype(np.float32)).max(-1)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    found = gallery_recall(gallery, device="cpu")
    sides = {"text_to_image": found.text_to_image, "image_to_text": found.image_to_text}
    recall = {f"{name}@{k}": round(v, 2) for name, s in sides.items() for k, v in s.recall.items()}
    return images, top, {"seconds_per_image": round(seconds / len(images), 4), **recall}


def main() -> None:
    """Measure both, and print one JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", default="vlre-tiny")
    parser.add_argument("--source", default="scenes:500?seed=77&captions=detailed")
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    given = parser.parse_args()
    source = "scenes:24?seed=77" if given.tiny else given.source
    with tempfile.TemporaryDirectory() as scratch:
        wanted, first, exact = measure(source, Path(scratch) / "float32", given.model, "float32")
        found, top, rough = measure(source, Path(scratch) / "int8", given.model, "int8")
    emit("int8", dtype="float32", model=given.model, source=source, **exact)
    cosines = (wanted * found).sum(-1)
    same = [
        len(set(a) & set(b)) / len(a) for a, b in zip(first.tolist(), top.tolist(), strict=True)
    ]
    emit(
        "int8",
        dtype="int8",
        model=given.model,
        source=source,
        cosine_mean=round(float(cosines.mean()), 5),
        cosine_min=round(float(cosines.min()), 5),
        top_10_same=round(float(np.mean(same)), 4),
        **rough,
    )


if __name__ == "__main__":
    main()
