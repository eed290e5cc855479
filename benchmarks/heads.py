"""Seconds until a head is as good as the first seed project's, against that project's loop.

    python -m benchmarks.heads                  5,000 pairs, 768-d images, 2,048-d texts
    python -m benchmarks.heads --tiny           for a test

One run holds both, alternating. The seed's loop is a DataLoader over single rows, float32, batches
of 256, AdamW 1e-3, five epochs for the linear head and eight for what it calls an MLP (its own
evaluation is not counted). Ours is `train_head` as `vlre train-head` calls it, from the opening of
the store to the first validation that reaches the seed's final recall on the same 1,000 held-out
pairs. Features are made: two non-linear views of
common factors with noise of their own, and spectra that fall off as those of real encoders do.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.report import emit
from retrieval_engine.external import Embeddings, import_embeddings
from retrieval_engine.external.vectors import Vectors
from retrieval_engine.heads import Head, HeadConfig, HeadKind
from retrieval_engine.store import open_store
from retrieval_engine.train.heads import HeadRecipe, train_head
from retrieval_engine.train.heads.losses import diagonal
from retrieval_engine.train.heads.ranks import scores, val_recall

Array = NDArray[np.float32]
_OWN = 1.6  # share of a view that the other does not see: recall as low as that of real pairs


def make_features(n: int, widths: tuple[int, int], seed: int = 0) -> tuple[Array, Array]:
    """(n, w) image and (n, v) text features."""
    rng = np.random.default_rng(seed)
    fall = np.arange(1, 401) ** -0.5
    common = rng.standard_normal((n, 400)) * fall
    made = []
    for width in widths:
        own = rng.standard_normal((n, 400)) * fall
        mixed = np.concatenate([common, _OWN * own], axis=1)
        hidden = np.tanh(mixed @ rng.standard_normal((800, width)) / 4)
        view = hidden + 0.3 * rng.standard_normal((n, width)) + 0.3 * rng.standard_normal(width)
        made.append(view.astype(np.float32))
    return made[0], made[1]


def seed_loop(
    images: Array, texts: Array, train: int, dim: int, epochs: int = 5
) -> tuple[float, float]:
    """Seconds of the seed's epochs, and validation R@mean at their end."""
    torch.manual_seed(0)
    head = Head(
        HeadConfig(
            kind=HeadKind.LINEAR,
            feature="pooled",
            image_width=images.shape[1],
            text_width=texts.shape[1],
            dim=dim,
            bias=False,
        )
    )
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-4)
    x, y = torch.from_numpy(images), torch.from_numpy(texts)
    loader = DataLoader(TensorDataset(x[:train], y[:train]), batch_size=256, shuffle=True)
    began = time.perf_counter()
    for _ in range(epochs):
        for image, text in loader:
            image_z = nn.functional.normalize(head.image.net(image), dim=-1)
            text_z = nn.functional.normalize(head.text.net(text), dim=-1)
            loss = diagonal(head.log_scale.exp() * image_z @ text_z.T)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            loss.item()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        found = scores(head.images(x[train:, None]), head.texts(y[train:]))
    return seconds, val_recall(found, torch.arange(len(found))).mean


def _median(values: list[float], digits: int) -> float | None:
    """None where a run never got there."""
    return None if any(math.isnan(v) for v in values) else round(statistics.median(values), digits)


def ours(
    store: Path, out: Path, recipe: HeadRecipe, goal: float, device: str
) -> tuple[float, float, float]:
    """Seconds until the goal, seconds in all, and validation R@mean at the end."""
    report = train_head(open_store(store), out, recipe, device=device)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    reached = [line["seconds"] for line in lines if line["mean_recall"] >= goal]
    return (reached[0] if reached else float("nan")), report.seconds, report.best.mean


def main() -> None:
    """Run the comparison and print one JSON line for each kind of head."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto", help="of our side; the seed's loop is CPU only")
    arguments = parser.parse_args()
    train, held_out, widths, dim = (
        (300, 60, (24, 40), 24) if arguments.tiny else (5000, 1000, (768, 2048), 768)
    )
    images, texts = make_features(train + held_out, widths)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for split, rows in (("train", slice(0, train)), ("val", slice(train, None))):
            pairs = Embeddings(
                images=Vectors(name="images", rows=images[rows]),
                texts=Vectors(name="texts", rows=texts[rows]),
                caption_image=np.arange(len(images[rows])),
            )
            import_embeddings(pairs, root / "store", name="made", split=split)
        for kind in HeadKind:
            recipe = HeadRecipe(kind=kind)
            seed_s, until_s, all_s, recalls = [], [], [], []
            for _ in range(1 if arguments.tiny else arguments.rounds):
                epochs = 8 if kind is HeadKind.MLP else 5
                seconds, goal = seed_loop(images, texts, train, dim, epochs)
                reached, whole, recall = ours(
                    root / "store", root / "head", recipe, goal, arguments.device
                )
                seed_s.append(seconds)
                until_s.append(reached)
                all_s.append(whole)
                recalls.append((goal, recall))
            emit(
                "heads",
                kind=kind.value,
                pairs=train,
                widths=list(widths),
                threads=torch.get_num_threads(),
                seed_s=round(statistics.median(seed_s), 3),
                ours_until_seed_recall_s=_median(until_s, 3),
                times_faster=_median([s / u for s, u in zip(seed_s, until_s, strict=True)], 2),
                ours_whole_s=round(statistics.median(all_s), 3),
                seed_mean_recall=round(recalls[-1][0], 2),
                our_mean_recall=round(recalls[-1][1], 2),
            )


if __name__ == "__main__":
    main()
