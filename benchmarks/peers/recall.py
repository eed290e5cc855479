"""Exact recall@K of both directions: `vlre eval --recall`, CLIP_benchmark's and open_clip's code.

A case is IMAGESxCAPTIONS of each. open_clip's training loop knows one caption an image.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.turns import Comparison, Figures, Side, watched

KS = (1, 5, 10)


def prepare(work: Path, case: str) -> None:
    """A float16 store, and the same numbers as float32 arrays."""
    from benchmarks.recall import Size, write_store
    from retrieval_engine.store import open_store

    images, per_image = map(int, case.split("x"))
    write_store(work / "store", Size(images=images, per_image=per_image))
    gallery = open_store(work / "store").gallery()
    np.save(work / "images.npy", np.asarray(gallery.images("itc")[:, 0], np.float32))
    np.save(work / "captions.npy", np.asarray(gallery.captions("itc")[:, 0], np.float32))


def _kept(work: Path, side: str, watch: Figures, recalls: dict[str, float]) -> Figures:
    (work / f"{side}.json").write_text(json.dumps(recalls))
    return watch | {"text_to_image_recall_at_1": round(recalls["T>I@1"], 3)}


def ours(work: Path, case: str) -> Figures:
    """As `vlre eval --recall` has it, from the store."""
    from retrieval_engine.evaluate import gallery_recall
    from retrieval_engine.store import open_store

    with watched() as watch:
        report = gallery_recall(open_store(work / "store").gallery(), device="cpu")
    recalls = {f"T>I@{k}": report.text_to_image.recall[k] for k in KS}
    recalls |= {f"I>T@{k}": report.image_to_text.recall[k] for k in KS}
    return _kept(work, "vlre", watch.figures, recalls)


class GivenVectors:
    """A model to CLIP_benchmark whose towers are done: pictures come as vectors, texts as rows."""

    def __init__(self, captions: np.ndarray) -> None:
        import torch

        self.captions = torch.from_numpy(captions)

    def encode_image(self, images: object) -> object:
        return images

    def encode_text(self, rows: Any) -> object:
        return self.captions[rows]


def clip_benchmark(work: Path, case: str) -> Figures:
    """`zeroshot_retrieval.evaluate`, given vectors in batches of 64."""
    import torch
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate

    per_image = int(case.split("x")[1])
    images = torch.from_numpy(np.load(work / "images.npy"))
    model = GivenVectors(np.load(work / "captions.npy"))
    batches = [
        (
            images[i : i + 64],
            [
                [str(per_image * j + n) for n in range(per_image)]
                for j in range(i, min(i + 64, len(images)))
            ],
        )
        for i in range(0, len(images), 64)
    ]

    def tokenizer(texts: list[str]) -> torch.Tensor:
        return torch.tensor([int(text) for text in texts])

    with watched() as watch:
        found = evaluate(model, batches, tokenizer, "cpu", amp=False, recall_k_list=list(KS))
    recalls = {f"T>I@{k}": 100 * found[f"image_retrieval_recall@{k}"] for k in KS}
    recalls |= {f"I>T@{k}": 100 * found[f"text_retrieval_recall@{k}"] for k in KS}
    return _kept(work, "CLIP_benchmark", watch.figures, recalls)


def open_clip(work: Path, case: str) -> Figures:
    """`get_clip_metrics` of its training loop, which is what it prints after an epoch."""
    import torch
    from open_clip_train.train import get_clip_metrics

    images, captions = (
        torch.from_numpy(np.load(work / f"{s}.npy")) for s in ("images", "captions")
    )
    with watched() as watch:
        found = get_clip_metrics(images, captions, 100.0)
    recalls = {f"T>I@{k}": 100 * float(found[f"text_to_image_R@{k}"]) for k in KS}
    recalls |= {f"I>T@{k}": 100 * float(found[f"image_to_text_R@{k}"]) for k in KS}
    return _kept(work, "open_clip", watch.figures, recalls)


def judge(work: Path, case: str, side: str) -> Figures:
    """The largest difference of the six recalls from ours, in points."""
    ours_, found = (json.loads((work / f"{s}.json").read_text()) for s in ("vlre", side))
    return {"largest_difference": round(max(abs(ours_[key] - found[key]) for key in found), 4)}


COMPARISON = Comparison(
    prepare=prepare,
    judge=judge,
    sides={
        "vlre": Side(run=ours),
        "CLIP_benchmark": Side(run=clip_benchmark, package="clip-benchmark"),
        "open_clip": Side(
            run=open_clip,
            package="open-clip-torch",
            skip=frozenset({"40x5", "1000x5", "5000x5"}),
            note="one caption an image",
        ),
    },
    cases=("1000x5", "5000x5", "5000x1"),
    tiny="40x5",
)
