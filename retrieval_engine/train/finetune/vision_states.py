"""Where the vision states of a batch come from: the cache, or images and the tower.

Images are augmented as BLIP's authors do for fine-tuning: crop, mirror, RandAugment. Trap: a
mirrored image whose caption says left or right teaches the wrong word; such an image is never
mirrored.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from retrieval_engine.errors import DecodeError
from retrieval_engine.machine import free_memory
from retrieval_engine.models.batching import pad_tokens
from retrieval_engine.models.device import normalized_pixels, on_device
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.records import Modality
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Store
from retrieval_engine.train.finetune.captioned import CaptionedImages, Ints

_MEMORY_SHARE = 0.4
_DECODERS = 4
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_SMALLEST = 0.5  # share of the image's area that a crop keeps at least
_OPERATIONS, _STRENGTH = 2, 0.5  # RandomAugment(2, 5) of the authors; 5 of 10


class Loader(Protocol):
    """Brings what the model needs of images; runs in a thread ahead of the model."""

    def load(self, data: CaptionedImages, images: Ints, step: int | None) -> NDArray[Any]:
        """Arrays of images by their numbers; a step augments, None does not."""

    def states(self, learner: Any, loaded: NDArray[Any]) -> Tensor:
        """(n, t, w) states on the device, made of what `load` gave."""


class CachedStates:
    """Stored `tokens`; all of them in memory where they take less than 0.4 of what is free.

    Args:
        store: with `tokens`.
        device: where states go.
    """

    def __init__(self, store: Store, device: torch.device) -> None:
        self._store = store
        self._device = device
        self._kept: dict[int, NDArray[Any]] = {}

    def keep(self, data: CaptionedImages) -> bool:
        """Read all tokens of a set into memory if they fit; whether they did."""
        form = self._store.features(Modality.IMAGES)["tokens"]
        needed = len(data) * int(np.prod(form.shape)) * np.dtype(form.dtype).itemsize
        if needed > _MEMORY_SHARE * (free_memory() or 0):
            return False
        self._kept[id(data)] = self._store.read(Modality.IMAGES, "tokens", data.rows)
        return True

    def load(self, data: CaptionedImages, images: Ints, step: int | None) -> NDArray[Any]:
        """See `Loader.load`."""
        kept = self._kept.get(id(data))
        if kept is not None:
            return kept[images]
        return self._store.read(Modality.IMAGES, "tokens", data.rows[images])

    def states(self, learner: Any, loaded: NDArray[Any]) -> Tensor:
        """See `Loader.states`."""
        return on_device(loaded, self._device).float()


class PixelStates:
    """Images through the learner's tower.

    Args:
        preprocessor: of the checkpoint.
        device: where the tower is.
        augment: whether training images are augmented.
        colour_jitter: how much brightness, contrast and saturation may change.
        seed: decides the augmentation.
        frozen: run the tower without gradient.
    """

    def __init__(
        self,
        preprocessor: ImagePreprocessor,
        device: torch.device,
        *,
        augment: bool,
        colour_jitter: float = 0.0,
        seed: int,
        frozen: bool,
    ) -> None:
        self._preprocessor = preprocessor
        self._device = device
        self._augment, self._seed, self._frozen = augment, seed, frozen
        self._jitter = colour_jitter
        self._pool = ThreadPoolExecutor(_DECODERS)

    def load(self, data: CaptionedImages, images: Ints, step: int | None) -> NDArray[Any]:
        """See `Loader.load`: (n, s, s, 3) uint8."""
        found = self._pool.map(
            lambda at: self._one(data, at[0], at[1], step), enumerate(images.tolist())
        )
        return np.stack(list(found))

    def _one(
        self, data: CaptionedImages, place: int, number: int, step: int | None
    ) -> NDArray[np.uint8]:
        uri = data.uris[number]
        try:
            image = decode(read_bytes(uri), least_side=self._preprocessor.least_side)
        except DecodeError as error:
            raise DecodeError(f"{data.ids[number]} ({uri}): {error.message}") from error
        if step is not None and self._augment:
            rng = np.random.default_rng((self._seed, 5, step, place))
            side = self._preprocessor.image_size
            image = augmented(image, side, rng, captions=data.captions_of(number))
            image = jittered(image, self._jitter, rng) if self._jitter else image
        return self._preprocessor.pixels(image)

    def states(self, learner: Any, loaded: NDArray[Any]) -> Tensor:
        """See `Loader.states`."""
        pixels = normalized_pixels(loaded, self._preprocessor, self._device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            found: Tensor = learner.see(pixels)
        return found


class Ahead:
    """Calls a function of the step in a thread, one step ahead.

    Args:
        make: what is called.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1)
        self._next: tuple[int, Any] | None = None

    def __call__(self, step: int, *, last: bool) -> Any:
        """What `make(step)` gives; begins on the step after it unless it is the last."""
        waiting = self._next if self._next and self._next[0] == step else None
        future = waiting[1] if waiting else self._thread.submit(self._make, step)
        found = future.result()
        self._next = None if last else (step + 1, self._thread.submit(self._make, step + 1))
        return found

    def close(self) -> None:
        """Wait for what is under way and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(n, l) int64 ids, padded on the right to the longest, and their mask."""
    ids, mask = pad_tokens(rows, max(map(len, rows)), pad=pad)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def augmented(
    image: Image.Image, side: int, rng: np.random.Generator, *, captions: Sequence[str]
) -> Image.Image:
    """A crop of the image, resized to a square, perhaps mirrored, changed by two operations.

    Args:
        image: RGB.
        side: of the result in pixels.
        rng: decides everything.
        captions: of the image.
    """
    image = _crop(image, side, rng)
    if rng.random() < 0.5 and not any(_SIDES.search(caption) for caption in captions):
        image = ImageOps.mirror(image)
    for _ in range(_OPERATIONS):
        operation = list(_ALL.values())[int(rng.integers(len(_ALL)))]
        if rng.random() < 0.5:
            image = operation(image, _STRENGTH * (1 if rng.random() < 0.5 else -1))
    return image


def jittered(image: Image.Image, most: float, rng: np.random.Generator) -> Image.Image:
    """The image with brightness, contrast and saturation changed, each by a factor near 1.

    Args:
        image: RGB.
        most: the factors lie within 1 - `most` and 1 + `most`.
        rng: decides them.
    """
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(1 + most * rng.uniform(-1, 1))
    return image


def _crop(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A crop as torchvision's RandomResizedCrop: area in [.5, 1], sides 3:4 to 4:3, bicubic."""
    width, height = image.size
    box = (0, 0, width, height)
    for _ in range(10):
        area = width * height * rng.uniform(_SMALLEST, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            box = (x, y, x + w, y + h)
            break
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


# What an operation makes of an image at a strength in [-1, 1], by its name in BLIP's RandAugment.
_ALL: Mapping[str, Callable[[Image.Image, float], Image.Image]] = MappingProxyType(
    {
        "Identity": lambda image, by: image,
        "AutoContrast": lambda image, by: ImageOps.autocontrast(image),
        "Brightness": lambda image, by: ImageEnhance.Brightness(image).enhance(1 + 0.9 * by),
        "Sharpness": lambda image, by: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * by),
        "Equalize": lambda image, by: ImageOps.equalize(image),
        "ShearX": lambda image, by: _affine(image, 1, 0.3 * by, 0, 0, 1, 0),
        "ShearY": lambda image, by: _affine(image, 1, 0, 0, 0.3 * by, 1, 0),
        "TranslateX": lambda image, by: _affine(image, 1, 0, 0.1 * by * image.width, 0, 1, 0),
        "TranslateY": lambda image, by: _affine(image, 1, 0, 0, 0, 1, 0.1 * by * image.height),
        "Rotate": lambda image, by: image.rotate(30 * by),
    }
)
