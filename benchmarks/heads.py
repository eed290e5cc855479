"""Seconds until a head is as good as the first seed project's, against that project's loop.

    python -m benchmarks.heads                  5,000 pairs, three widths, four strengths of noise
    python -m benchmarks.heads --tiny           for a test

One run holds both, alternating. The seed's loop is a DataLoader over single rows, float32, batches
of 256, AdamW 1e-3, five epochs for the linear head and eight for what it calls an MLP (its own
evaluation is not counted). Ours is `train_head` as `vlre train-head` calls it, from the opening of
the store to the first validation that reaches the seed's final recall on the same 1,000 held-out
pairs. A further 1,000 pairs, seen by neither, tell how good both are in the end. Features are made:
two non-linear views of common factors with noise of their own, and spectra that fall off as those
of real encoders do; the noise decides how hard the pairs are to find.
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
from retrieval_engine.encoding import Embeddings, import_embeddings
from retrieval_engine.encoding.vector_set import Vectors
from retrieval_engine.heads import Head, HeadConfig, HeadKind
from retrieval_engine.store import open_store
from retrieval_engine.train.head import HeadRecipe, train_head
from retrieval_engine.train.head.fitting import diagonal_loss
from retrieval_engine.train.head.val_recall import val_recall

Array = NDArray[np.float32]
_TRAIN, _HELD_OUT = 5000, 1000
_CASES = [  # widths of images and texts; how strong is what the other side does not see
    ((768, 2048), 1.6),
    ((768, 2048), 2.2),
    ((768, 2048), 3.0),
    ((768, 2048), 4.0),
    ((768, 768), 2.2),
    ((2048, 2048), 3.0),
]


def make_features(
    n: int, widths: tuple[int, int], noise: float, seed: int = 0
) -> tuple[Array, Array]:
    """(n, w) image and (n, v) text features."""
    rng = np.random.default_rng(seed)
    fall = np.arange(1, 401) ** -0.5
    common = rng.standard_normal((n, 400)) * fall
    made = []
    for width in widths:
        own = rng.standard_normal((n, 400)) * fall
        mixed = np.concatenate([common, noise * own], axis=1)
        hidden = np.tanh(mixed @ rng.standard_normal((800, width)) / 4)
        view = hidden + 0.3 * rng.standard_normal((n, width)) + 0.3 * rng.standard_normal(width)
        made.append(view.astype(np.float32))
    return made[0], made[1]


def seed_loop(images: Array, texts: Array, train: int, dim: int, epochs: int) -> tuple[float, Head]:
    """Seconds of the seed's epochs, and its head."""
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
            loss = diagonal_loss(head.log_scale.exp() * image_z @ text_z.T)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            loss.item()
    return time.perf_counter() - began, head


@torch.no_grad()
def mean_recall(head: Head, images: Array, texts: Array) -> float:
    """R@mean of pairs."""
    head = head.cpu().eval()
    return val_recall(
        head.images(torch.from_numpy(images)[:, None]),
        head.texts(torch.from_numpy(texts)),
        torch.arange(len(images)),
    ).mean


def ours(
    store: Path, out: Path, recipe: HeadRecipe, goal: float, device: str
) -> tuple[float, float, Head]:
    """Seconds until validation reaches the goal (NaN: never), seconds in all, and the head."""
    report = train_head(open_store(store), out, recipe, device=device)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    reached = [line["seconds"] for line in lines if line["mean_recall"] >= goal]
    return (reached[0] if reached else float("nan")), report.seconds, report.saved.head


def _median(values: list[float], digits: int) -> float | None:
    """None where a run never got there."""
    return None if any(math.isnan(v) for v in values) else round(statistics.median(values), digits)


def compare(
    widths: tuple[int, int], noise: float, train: int, held_out: int, rounds: int, device: str
) -> None:
    """Measure one kind of features, and print one JSON line for each kind of head."""
    dim = min(768, *widths)
    images, texts = make_features(train + 2 * held_out, widths, noise)
    val, test = slice(train, train + held_out), slice(train + held_out, None)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for split, rows in (("train", slice(0, train)), ("val", val)):
            pairs = Embeddings(
                images=Vectors(name="images", rows=images[rows]),
                texts=Vectors(name="texts", rows=texts[rows]),
                caption_image=np.arange(len(images[rows])),
            )
            import_embeddings(pairs, root / "store", name="made", split=split)
        for kind in HeadKind:
            epochs = 8 if kind is HeadKind.MLP else 5
            seed_s, until_s, all_s, recalls = [], [], [], []
            for _ in range(rounds):
                seconds, theirs = seed_loop(images, texts, train, dim, epochs)
                goal = mean_recall(theirs, images[val], texts[val])
                recipe = HeadRecipe(kind=kind)
                reached, whole, mine = ours(root / "store", root / "head", recipe, goal, device)
                seed_s.append(seconds)
                until_s.append(reached)
                all_s.append(whole)
                tested = (mean_recall(head, images[test], texts[test]) for head in (theirs, mine))
                recalls.append((goal, *tested))
            goal, seed_recall, our_recall = (round(r, 2) for r in recalls[-1])
            emit(
                "heads",
                kind=kind.value,
                pairs=train,
                widths=list(widths),
                noise=noise,
                threads=torch.get_num_threads(),
                seed_s=round(statistics.median(seed_s), 3),
                ours_until_seed_recall_s=_median(until_s, 3),
                times_faster=_median([s / u for s, u in zip(seed_s, until_s, strict=True)], 2),
                ours_whole_s=round(statistics.median(all_s), 3),
                seed_val_recall=goal,
                seed_test_recall=seed_recall,
                our_test_recall=our_recall,
            )


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto", help="of our side; the seed's loop is CPU only")
    arguments = parser.parse_args()
    if arguments.tiny:
        compare((24, 40), 1.6, 300, 60, 1, arguments.device)
        return
    for widths, noise in _CASES:
        compare(widths, noise, _TRAIN, _HELD_OUT, arguments.rounds, arguments.device)


if __name__ == "__main__":
    main()
