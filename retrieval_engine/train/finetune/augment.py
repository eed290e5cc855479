"""Pictures as BLIP's authors augment them for fine-tuning: crop, mirror, RandAugment.

Trap of the seeds: a mirrored picture whose caption says left or right teaches the wrong word; such
pictures are never mirrored.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_SMALLEST = 0.5  # share of the picture's area that a crop keeps at least
_OPERATIONS, _STRENGTH = 2, 0.5  # RandomAugment(2, 5) of the authors; 5 of 10


def augmented(
    picture: Image.Image, side: int, rng: np.random.Generator, *, captions: Sequence[str]
) -> Image.Image:
    """A crop of the picture, resized to a square, perhaps mirrored, changed by two operations.

    Args:
        picture: RGB.
        side: of the result in pixels.
        rng: decides everything.
        captions: of the picture.
    """
    picture = _crop(picture, side, rng)
    if rng.random() < 0.5 and not any(_SIDES.search(caption) for caption in captions):
        picture = ImageOps.mirror(picture)
    for _ in range(_OPERATIONS):
        operation = _ALL[int(rng.integers(len(_ALL)))]
        if rng.random() < 0.5:
            picture = operation(picture, _STRENGTH * (1 if rng.random() < 0.5 else -1))
    return picture


def _crop(picture: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A crop as torchvision's RandomResizedCrop: area in [.5, 1], sides 3:4 to 4:3, bicubic."""
    width, height = picture.size
    box = (0, 0, width, height)
    for _ in range(10):
        area = width * height * rng.uniform(_SMALLEST, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            box = (x, y, x + w, y + h)
            break
    return picture.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix)


def _shear_x(picture: Image.Image, by: float) -> Image.Image:
    return _affine(picture, (1, 0.3 * by, 0, 0, 1, 0))


def _shear_y(picture: Image.Image, by: float) -> Image.Image:
    return _affine(picture, (1, 0, 0, 0.3 * by, 1, 0))


def _shift_x(picture: Image.Image, by: float) -> Image.Image:
    return _affine(picture, (1, 0, 0.1 * by * picture.width, 0, 1, 0))


def _shift_y(picture: Image.Image, by: float) -> Image.Image:
    return _affine(picture, (1, 0, 0, 0, 1, 0.1 * by * picture.height))


def _turn(picture: Image.Image, by: float) -> Image.Image:
    return picture.rotate(30 * by)


def _brightness(picture: Image.Image, by: float) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(1 + 0.9 * by)


def _sharpness(picture: Image.Image, by: float) -> Image.Image:
    return ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * by)


def _contrast(picture: Image.Image, by: float) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Image.Image, by: float) -> Image.Image:
    return ImageOps.equalize(picture)


def _same(picture: Image.Image, by: float) -> Image.Image:
    return picture


_ALL: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    _same,
    _contrast,
    _brightness,
    _sharpness,
    _equalize,
    _shear_x,
    _shear_y,
    _shift_x,
    _shift_y,
    _turn,
)
