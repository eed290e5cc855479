"""Where a model looked for each word, as pictures."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from retrieval_engine.serve.questions import Explained

_SHADE_PIXELS = 96
_DIMMED = 0.78  # how dark it is where nobody looked
_SHEET_PIXELS, _COLUMNS, _LINE, _GAP = 240, 4, 26, 8


def shade(seen: NDArray[np.float32]) -> str:
    """A map as a PNG in a data URL: laid over the image it darkens what did not matter.

    Args:
        seen: (g, g), at least 0; its largest value stays light.
    """
    light = _light(seen, (_SHADE_PIXELS, _SHADE_PIXELS))
    dark = np.zeros((*light.shape, 2), np.uint8)  # grey and alpha
    dark[..., 1] = np.rint(255 * _DIMMED * (1 - light))
    return "data:image/png;base64," + base64.b64encode(_png(Image.fromarray(dark))).decode()


def sheet(image: Image.Image, found: Explained) -> bytes:
    """A PNG of an image, and of it again for each word, lit where that mattered.

    Args:
        image: RGB.
        found: what the matcher says.
    """
    image = image.copy()
    image.thumbnail((_SHEET_PIXELS, _SHEET_PIXELS))
    titled = [(f"{100 * found.probability:.0f} %", image)]
    for word, seen in found.words:
        light = _light(seen, image.size)[..., None]
        lit = np.asarray(image) * (1 - _DIMMED * (1 - light))
        titled.append((word, Image.fromarray(lit.astype(np.uint8))))
    return _png(_in_rows(titled, image.size))


def _in_rows(titled: Sequence[tuple[str, Image.Image]], size: tuple[int, int]) -> Image.Image:
    columns = min(_COLUMNS, len(titled))
    wide, high = size[0] + _GAP, size[1] + _LINE + _GAP
    rows = math.ceil(len(titled) / columns)
    whole = Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(16)
    for number, (title, picture) in enumerate(titled):
        x, y = _GAP + number % columns * wide, _GAP + number // columns * high
        pen.text((x, y), title, fill="#1c1d21", font=font)
        whole.paste(picture, (x, y + _LINE))
    return whole


def _light(seen: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w) from 0 to 1."""
    level = Image.fromarray((seen / max(float(seen.max()), 1e-12)).astype(np.float32))
    grown = np.asarray(level.resize(size, Image.Resampling.BICUBIC), np.float32)
    return np.clip(grown, np.float32(0), np.float32(1))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
