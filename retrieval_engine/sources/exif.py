"""What an image's file says about itself: when, where and with what it was taken, and its size.

Only headers are read. EXIF (CIPA DC-008) is written by thousands of programs, and much of it is
wrong: whatever cannot be read or cannot be meant is as if it were not there.
"""

import math
import re
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from PIL import Image

from retrieval_engine.records import ImageFacts

# What Pillow's readers raise on damaged or hostile bytes, found by fuzzing them.
BROKEN = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, struct.error, zlib.error, Image.DecompressionBombError),
)

_EXIF, _GPS = 0x8769, 0x8825
_ORIENTATION, _MAKE, _MODEL, _CHANGED = 0x0112, 0x010F, 0x0110, 0x0132
_TAKEN, _DIGITIZED = 0x9003, 0x9004
_LATITUDE, _LONGITUDE = (1, 2), (3, 4)  # tags of the direction and of degrees, minutes, seconds
_SIDEWAYS = 5  # from this orientation on, width and height change places
# Written by hand and by other programs with other signs between the numbers; 0000:00:00 is common.
_TIME = re.compile(r"(\d{4})[:\-/.](\d\d)[:\-/.](\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d))?)?")
_LONGEST = 80
# Nobody says "Apple iPhone 12": their models are named without them.
_UNSAID = {"apple", "google"}


def read_facts(image: Image.Image, size_bytes: int) -> ImageFacts:
    """What an opened image, of which no pixel need be decoded, says about itself.

    Args:
        image: with its header read.
        size_bytes: length of its file.
    """
    width, height = image.size
    tags: Mapping[int, Any] = {}
    taken: datetime | None = None
    place: tuple[float | None, float | None] = (None, None)
    with suppress(*BROKEN):
        # Of a PNG without EXIF at its beginning, Pillow would decode all to look at its end.
        if image.format != "PNG" or "exif" in image.info:
            tags = exif = image.getexif()
            place = _place(exif)
            taken = _taken(exif)
    if _tag(tags, _ORIENTATION) in range(_SIDEWAYS, 9):
        width, height = height, width
    return ImageFacts(
        taken=taken,
        camera=_camera(_text(tags, _MAKE), _text(tags, _MODEL)),
        latitude=place[0],
        longitude=place[1],
        width=width,
        height=height,
        bytes=size_bytes,
    )


def _tag(tags: Mapping[int, Any], number: int) -> Any:
    with suppress(*BROKEN):
        return tags.get(number)
    return None


def _text(tags: Mapping[int, Any], number: int) -> str:
    """A tag's text on one line, of a bounded length and without what is no text."""
    value = _tag(tags, number)
    if isinstance(value, bytes):
        value = value.decode("ascii", errors="replace")
    if not isinstance(value, str):
        return ""
    text = value.encode(errors="replace").decode().partition("\0")[0]
    return " ".join(text.split())[:_LONGEST]


def _camera(make: str, model: str) -> str | None:
    """`Apple`, `iPhone 12` is an iPhone 12; `NIKON CORPORATION`, `NIKON D750` is a NIKON D750."""
    first = model.partition(" ")[0].lower()
    if not model or not make or make.lower() in _UNSAID or first in make.lower().split():
        return model or make or None
    return f"{make.partition(' ')[0]} {model}"


def _taken(exif: Image.Exif) -> datetime | None:
    """When it was taken, by the camera's clock: a time zone beside it is not looked at."""
    details: Mapping[int, Any] = {}
    with suppress(*BROKEN):
        details = exif.get_ifd(_EXIF)
    for tags, number in ((details, _TAKEN), (details, _DIGITIZED), (exif, _CHANGED)):
        if found := _TIME.match(_text(tags, number)):
            with suppress(ValueError):
                return datetime(*(int(part or 0) for part in found.groups()))  # type: ignore[arg-type]
    return None


def _place(exif: Image.Exif) -> tuple[float | None, float | None]:
    """Latitude and longitude; both or none."""
    tags: Mapping[int, Any] = {}
    with suppress(*BROKEN):
        tags = exif.get_ifd(_GPS)
    latitude, longitude = _degrees(tags, *_LATITUDE, "NS"), _degrees(tags, *_LONGITUDE, "EW")
    if latitude is None or longitude is None or abs(latitude) > 90 or abs(longitude) > 180:
        return None, None
    return latitude, longitude


def _degrees(tags: Mapping[int, Any], direction: int, parts: int, signs: str) -> float | None:
    """Degrees, minutes and seconds as one number; a denominator of zero is no number."""
    sign, values = _text(tags, direction).upper()[:1], _tag(tags, parts)
    if not sign or sign not in signs or not isinstance(values, tuple) or len(values) != 3:
        return None
    try:
        degrees, minutes, seconds = map(float, values)
    except BROKEN:
        return None
    found = degrees + minutes / 60 + seconds / 3600
    if not math.isfinite(found):
        return None
    return -found if sign == signs[1] else found
