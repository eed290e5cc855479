"""Pairs per second of the matcher against the authors' evaluation loop.

    python -m benchmarks.rerank                  BLIP ViT-B/16-384, random weights
    python -m benchmarks.rerank --large          ViT-L/16-384
    python -m benchmarks.rerank --tiny           for a test

The authors' order (BLIP's train_retrieval.py, LAVIS's compute_sim_matrix): for each image, its
vision states repeated for its k candidate texts, which are padded to 35 tokens; keys and values of
the image are computed for every pair. Both read the same stored states; the vision tower runs in
neither. One run holds all ways, alternating. Quality beside speed: the largest difference of a
logit from the authors' order in float32, and the share of images whose best text is the same.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import checkpoints
from benchmarks.report import emit
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.batching import pad_tokens
from retrieval_engine.models.blip.encoder import BlipEncoder
from retrieval_engine.models.device import autocast
from retrieval_engine.records import Modality

Logits = NDArray[np.float32]


def captions(n: int) -> list[str]:
    """Sentences of 6 to 16 words, as long as COCO's."""
    rng = np.random.default_rng(0)
    return [
        " ".join(rng.choice(checkpoints.WORDS, size=int(rng.integers(6, 17)))) for _ in range(n)
    ]


def authors_order(encoder: Any, tokens: NDArray[Any], texts: list[str], k: int) -> Logits:
    """(images, k) logits as BLIP's evaluation computes them: image i has texts i k … i k + k - 1."""
    ids = [[encoder.enc_token_id, *row[1:]] for row in encoder.tokenize(texts)]
    padded, mask = pad_tokens(ids, 35, pad=0)
    found = []
    with torch.inference_mode(), autocast(encoder.device, encoder.dtype):
        for i, states in enumerate(tokens):
            image = torch.from_numpy(states).to(encoder.device, encoder.dtype)
            rows = slice(i * k, i * k + k)
            output = encoder.model.text_encoder(
                input_ids=torch.from_numpy(padded[rows]).to(encoder.device),
                attention_mask=torch.from_numpy(mask[rows]).to(encoder.device),
                encoder_hidden_states=image[None].repeat(k, 1, 1),
                encoder_attention_mask=torch.ones(k, len(states), device=encoder.device),
            ).last_hidden_state
            logits = encoder.model.itm_head(output[:, 0].float()).float()
            found.append(logits[:, 1].cpu().numpy())
    return np.stack(found)


def ours(encoder: Encoder, tokens: NDArray[Any], texts: list[str], k: int) -> Logits:
    """The same pairs through the matcher."""
    pairs = np.array([(j // k, j) for j in range(len(texts))])
    scores = encoder.matcher().score_pairs(lambda rows: tokens[rows], texts, pairs)
    return scores.reshape(-1, k)


def timed(work: Callable[[], Logits]) -> tuple[float, Logits]:
    """Seconds and result."""
    start = time.perf_counter()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def main() -> None:
    """Run the comparison and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    images, k, rounds = (
        (2, 4, 1) if arguments.tiny else (arguments.images, arguments.k, arguments.rounds)
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = checkpoints.blip(Path(scratch), large=arguments.large, tiny=arguments.tiny)
        opened = {
            dtype: open_encoder(str(path), device=arguments.device, dtype=dtype)
            for dtype in ("float32", "auto")
        }
        theirs = {  # through transformers' modules
            dtype: BlipEncoder(resolve(str(path)), device=arguments.device, dtype=dtype)
            for dtype in opened
        }
    shape = opened["auto"].features(Modality.IMAGES)["tokens"].shape
    tokens = np.random.default_rng(1).standard_normal((images, *shape)).astype(np.float16)
    texts = captions(images * k)
    ways: dict[str, Callable[[], Logits]] = {
        "authors_float32": lambda: authors_order(theirs["float32"], tokens, texts, k),
        "authors_half": lambda: authors_order(theirs["auto"], tokens, texts, k),
        "ours_float32": lambda: ours(opened["float32"], tokens, texts, k),
        "ours_half": lambda: ours(opened["auto"], tokens, texts, k),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    logits: dict[str, Logits] = {}
    for _ in range(rounds + 1):  # the first round warms up
        for name, work in ways.items():
            took, logits[name] = timed(work)
            seconds[name].append(took)
    speed = {
        name: images * k / statistics.median(times[1:] or times) for name, times in seconds.items()
    }
    reference = logits["authors_float32"]
    size = "tiny" if arguments.tiny else "vit-l16-384" if arguments.large else "vit-b16-384"
    emit(
        "rerank",
        model=f"blip-{size}-random",
        images=images,
        k=k,
        rounds=rounds,
        half=opened["auto"].spec.dtype,
        pairs_per_s={name: round(value, 2) for name, value in speed.items()},
        ratio_as_shipped=round(speed["ours_half"] / speed["authors_float32"], 2),
        ratio_float32=round(speed["ours_float32"] / speed["authors_float32"], 2),
        ratio_half=round(speed["ours_half"] / speed["authors_half"], 2),
        largest_difference={n: float(abs(v - reference).max()) for n, v in logits.items()},
        spread_of_logits=float(reference.std()),
        same_best={
            n: float((v.argmax(1) == reference.argmax(1)).mean()) for n, v in logits.items()
        },
    )


if __name__ == "__main__":
    main()
