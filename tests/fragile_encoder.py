"""A tiny real BLIP in a process that some pictures and captions are too much for.

Pictures of one colour do harm as hardware and drivers do, and so do captions with a word.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from retrieval_engine.errors import EncoderError
from retrieval_engine.models import Encoder, open_encoder

HANGS, SPOILS, RAISES = (0, 255, 0), (0, 0, 255), (255, 255, 0)
DEADLY = "deadly"


def save(path: Path, colour: tuple[int, int, int]) -> None:
    """A picture of one colour."""
    Image.new("RGB", (32, 32), colour).save(path)


def open_fragile(checkpoint: str, *, device: str) -> Encoder:
    """The encoder, with these weaknesses."""
    encoder: Any = open_encoder(checkpoint, device=device, dtype="float32")
    images, texts = encoder.encode_images, encoder.encode_texts

    def encode_images(pixels: Any, features: Any) -> Any:
        colours = [tuple(p[0, 0].tolist()) for p in pixels]
        if HANGS in colours:
            time.sleep(1_000)
        if RAISES in colours:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        arrays = images(pixels, features)
        for number, colour in enumerate(colours):
            if colour == SPOILS:
                arrays["itc"][number, 0, 3] = np.nan
        return arrays

    def encode_texts(sentences: Any, features: Any) -> Any:
        if any(DEADLY in sentence for sentence in sentences):
            os.kill(os.getpid(), signal.SIGKILL)
        return texts(sentences, features)

    encoder.encode_images, encoder.encode_texts = encode_images, encode_texts
    return cast("Encoder", encoder)


def open_slow(checkpoint: str, *, device: str) -> Encoder:
    """The encoder; what it encodes takes as long as with a larger one."""
    encoder: Any = open_encoder(checkpoint, device=device, dtype="float32")
    images = encoder.encode_images

    def encode_images(pixels: Any, features: Any) -> Any:
        time.sleep(0.04)
        return images(pixels, features)

    encoder.encode_images = encode_images
    return cast("Encoder", encoder)


def open_small(checkpoint: str, most: int, *, device: str) -> Encoder:
    """The encoder on a device whose memory takes so many pictures at a time."""
    encoder: Any = open_encoder(checkpoint, device=device, dtype="float32")
    images, tried = encoder.encode_images, Path(checkpoint) / "tried"

    def encode_images(pixels: Any, features: Any) -> Any:
        with tried.open("a") as file:
            file.write(f"{len(pixels)} ")
        if len(pixels) > most:
            raise RuntimeError("CUDA driver error: out of memory")
        return images(pixels, features)

    encoder.encode_images = encode_images
    return cast("Encoder", encoder)


def open_twice(checkpoint: str, *, device: str) -> Encoder:
    """The encoder for the first two processes; for others it is gone."""
    seen = Path(checkpoint) / "opened"
    with seen.open("ab") as file:
        file.write(b".")
    if seen.stat().st_size > 2:
        raise EncoderError("the card has fallen off the bus")
    return open_encoder(checkpoint, device=device, dtype="float32")


def open_another(checkpoints: str, *, device: str) -> Encoder:
    """The next of several checkpoints, `a,b`, each time: as if the files changed meanwhile."""
    first, *others = checkpoints.split(",")
    seen = Path(first) / "opened"
    if others and seen.exists():
        first = others[0]
    seen.touch()
    return open_encoder(first, device=device, dtype="float32")
