"""States of the frozen backbone, encoded once, with two views of each training picture.

The mirrored picture needs no view of its own: the states' grid is turned instead, since a network
that was trained on mirrored pictures gives nearly the mirrored states.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from retrieval_engine.durable import replacing_file
from retrieval_engine.errors import SourceError, TrainingError
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.blip.backbone import EfficientNetLite
from retrieval_engine.models.blip.onnx_backbone import OnnxBackbone, is_installed
from retrieval_engine.models.device import normalized_pixels
from retrieval_engine.models.preprocess import ImagePreprocessor, SquashToSquare
from retrieval_engine.progress import Progress
from retrieval_engine.records import Item
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.workers import Failed, open_pool

MEAN, STD = 127 / 255, 128 / 255
_BATCH, _CUDA_BATCH = 8, 128
_SAVE_EVERY = 512  # pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Backbone states of n pictures.

    Attributes:
        items: the n items that could be read, in order.
        views: arrays of (n, p, c) float16, mapped from disk; the first is of whole pictures.
        failures: a line for each item that could not be read.
    """

    items: Sequence[Item]
    views: Sequence[NDArray[np.float16]]
    failures: Sequence[str]


def preprocessor(image_size: int) -> SquashToSquare:
    """Pixels as EfficientNet-Lite takes them: (x - 127) / 128."""
    return SquashToSquare(image_size=image_size, mean=(MEAN,) * 3, std=(STD,) * 3, draft=True)


def encode_states(
    items: Sequence[Item],
    backbone: EfficientNetLite,
    folder: Path,
    *,
    image_size: int,
    views: int,
    progress: Progress,
) -> States:
    """States of items, from the folder where they were encoded before; a killed run goes on.

    Args:
        items: what to encode.
        backbone: in evaluation mode, on its device.
        folder: for the arrays.
        image_size: side of the square in pixels.
        views: 1 for whole pictures alone, 2 with a crop of each beside it.
        progress: told about the encoding.

    Raises:
        TrainingError: not one item could be read.
    """
    weights = hashlib.sha256()
    for parameter in backbone.parameters():
        weights.update(parameter.detach().cpu().contiguous().numpy().data)
    files = [[item.uri, item.size_bytes, item.mtime_ns] for item in items]
    key = digest([weights.hexdigest(), *backbone.stages, image_size, files])
    home = folder / key[:16]
    home.mkdir(parents=True, exist_ok=True)
    progress.start("encoding states", views * len(items))
    device = next(backbone.parameters()).device
    run: EfficientNetLite | OnnxBackbone = backbone
    if device.type == "cpu" and is_installed():
        run = OnnxBackbone(backbone)
    look = preprocessor(image_size)
    found = [_encode_view(items, run, home, look, view, device, progress) for view in range(views)]
    progress.stop()
    failures: dict[str, str] = json.loads((home / "0.json").read_text(encoding="utf-8"))["failures"]
    rows = [row for row in range(len(items)) if str(row) not in failures]
    if not rows:
        raise TrainingError(f"no picture could be read; the first: {next(iter(failures.values()))}")
    return States(
        items=[items[row] for row in rows],
        views=[view if len(rows) == len(items) else view[rows] for view in found],
        failures=[f"{items[int(row)].id}: {why}" for row, why in failures.items()],
    )


def _encode_view(
    items: Sequence[Item],
    backbone: EfficientNetLite | OnnxBackbone,
    home: Path,
    look: SquashToSquare,
    view: int,
    device: torch.device,
    progress: Progress,
) -> NDArray[np.float16]:
    arrays, note = home / f"{view}.npy", home / f"{view}.json"
    image_size = look.image_size
    at: dict[str, Any] = {"done": 0, "failures": {}}
    if note.exists():
        at = json.loads(note.read_text(encoding="utf-8"))
        states = open_memmap(arrays, "r+")
    else:
        places = (-(-image_size // 32)) ** 2
        states = open_memmap(arrays, "w+", np.float16, (len(items), places, backbone.channels))
    progress.advance(at["done"])
    size = _CUDA_BATCH if device.type == "cuda" else _BATCH
    saved = at["done"]
    with open_pool("threads") as pool:
        read = iter(pool.imap(partial(_pixels, look=look, view=view), items[at["done"] :]))
        while batch := list(islice(read, size)):
            start, pixels = at["done"], []
            for row, (_, one) in enumerate(batch, start=start):
                if isinstance(one, Failed):
                    raise one.error or TrainingError(one.reason)
                if isinstance(one, str):
                    at["failures"][str(row)] = one
                    one = np.zeros((image_size, image_size, 3), dtype=np.uint8)
                pixels.append(one)
            with torch.inference_mode():
                found = backbone(normalized_pixels(np.stack(pixels), look, device))
            states[start : start + len(batch)] = found.float().cpu().numpy()
            at["done"] = start + len(batch)
            progress.advance(len(batch))
            if at["done"] - saved >= _SAVE_EVERY or at["done"] == len(items):
                saved = at["done"]
                states.flush()
                with replacing_file(note) as file:
                    file.write(json.dumps(at).encode())
    found_all: NDArray[np.float16] = np.load(arrays, mmap_mode="r")
    return found_all


def _pixels(item: Item, *, look: ImagePreprocessor, view: int) -> NDArray[np.uint8] | str:
    """Pixels of an item in a view, or why it cannot be read."""
    try:
        image = decode(read_bytes(item.uri), least_side=look.least_side)
    except SourceError as error:
        return error.message
    return look.pixels(_seen(image, item, view))


def _seen(image: Image.Image, item: Item, view: int) -> Image.Image:
    """The whole picture, or for another view a crop of half of it or more, in other light."""
    if not view:
        return image
    rng = random.Random(f"{item.id}/{view}")
    width, height = image.size
    area, shape = rng.uniform(0.5, 0.95), rng.uniform(0.85, 1.18)
    w, h = min(1.0, (area * shape) ** 0.5), min(1.0, (area / shape) ** 0.5)
    x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
    box = (x * width, y * height, (x + w) * width, (y + h) * height)
    image = image.crop(tuple(round(v) for v in box))  # type: ignore[arg-type]
    for kind, reach in (
        (ImageEnhance.Brightness, 0.25),
        (ImageEnhance.Color, 0.3),
        (ImageEnhance.Contrast, 0.2),
    ):
        image = kind(image).enhance(rng.uniform(1 - reach, 1 + reach))
    return image
