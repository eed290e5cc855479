"""Small images drawn from a seed, and the files they make."""

import io

import numpy as np
from PIL import Image

SIZE = (48, 32)


def photo(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth coloured image, another for each seed; no two of its corners are alike."""
    width, height = size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    start, dx, dy = (rng.uniform(low, high, 3) for low, high in ((40, 80), (60, 90), (30, 50)))
    ramp = start + (x / width)[..., None] * dx + (y / height)[..., None] * dy
    return Image.fromarray(np.rint(ramp).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file of this format."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def jpeg(seed: int = 0, size: tuple[int, int] = SIZE) -> bytes:
    """A good JPEG, another for each seed."""
    return encoded(photo(seed, size), "JPEG", quality=90)
