"""Small images drawn from a seed, and the files they make."""

import io
from collections.abc import Mapping

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


def photo_with(  # noqa: PLR0913 (what cameras write)
    seed: int = 0,
    *,
    kind: str = "JPEG",
    size: tuple[int, int] = (40, 30),
    make: str = "",
    model: str = "",
    taken: str = "",
    offset: str = "",
    gps: Mapping[int, object] | None = None,
    orientation: int = 0,
) -> bytes:
    """A file with EXIF as a camera writes it: only what is given.

    Args:
        seed: of the image.
        kind: format of the file.
        size: width and height.
        make: of the camera.
        model: of the camera.
        taken: text of DateTimeOriginal.
        offset: text of OffsetTimeOriginal.
        gps: tags of the GPS directory by number.
        orientation: 1 to 8.
    """
    exif = Image.Exif()
    exif.update({k: v for k, v in ((0x010F, make), (0x0110, model), (0x0112, orientation)) if v})
    exif.get_ifd(0x8769).update({k: v for k, v in ((0x9003, taken), (0x9011, offset)) if v})
    exif.get_ifd(0x8825).update(gps or {})
    has_any = any((make, model, taken, offset, gps, orientation))
    return encoded(photo(seed, size), kind, **({"exif": exif} if has_any else {}))
