"""One image in any form that a program has it in, and what tells it from words."""

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval_engine.errors import DecodeError, UsageError
from retrieval_engine.sources import KINDS
from retrieval_engine.sources.decode import picture_suffixes

_CHANNELS = (1, 3, 4)
FORMS = "a path, a PIL image, an array, or the bytes of a file"


def is_array(value: object) -> bool:
    """Whether something is an array or a tensor of any library."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__array__")


def is_image(value: object) -> bool:
    """Whether something is one image; a string counts where it names a picture."""
    if isinstance(value, str):
        return names_picture(value)
    if is_array(value):
        return len(value.shape) == 3 or len(value.shape) == 2  # type: ignore[attr-defined]
    return isinstance(value, os.PathLike | Image.Image | bytes | bytearray | memoryview)


def names_picture(text: str) -> bool:
    """Whether a string is a picture rather than words: an address, an item's uri, a file's name.

    A name with blanks in it is a file's only where the file is there.
    """
    if text.startswith(("http://", "https://", "file://")):
        return True
    if is_uri(text):
        return True
    suffix = os.path.splitext(text)[1].lower()
    if not suffix:
        return False  # as of most words, for which Pillow's formats need not be listed
    is_there = os.path.isfile(os.path.expanduser(text))
    return suffix in picture_suffixes() and (is_there or not any(map(str.isspace, text)))


def is_uri(text: str) -> bool:
    """Whether a string is the uri of a source's item, such as `scenes:7/12`, and no file."""
    kind, colon, rest = text.partition(":")
    is_one = bool(colon and rest) and kind in KINDS.names() and not any(map(str.isspace, text))
    return is_one and not os.path.lexists(text)


def image_bytes(value: Any) -> bytes:
    """The bytes of a file that holds an image, whatever form it is given in.

    Args:
        value: a path, an address, an item's uri, PIL, an array or tensor of (h, w), (h, w, c) or
            (c, h, w), or the bytes themselves.

    Raises:
        SourceError: it cannot be read.
        UsageError: it is no image.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str | os.PathLike):
        return _read(os.fspath(value))
    if isinstance(value, Mapping) and value.get("bytes"):  # a cell of Hugging Face's tables
        return bytes(value["bytes"])
    if isinstance(value, Mapping) and value.get("path"):
        return _read(str(value["path"]))
    if is_array(value):
        value = picture_of(np.asarray(value))
    if isinstance(value, Image.Image):
        return _png(value)
    raise UsageError(f"{type(value).__name__} is no image", hint=f"give {FORMS}")


def _read(place: str) -> bytes:
    from retrieval_engine.sources.asked import read_asked  # http, which words have no need of

    return read_asked(place)


def _png(picture: Image.Image) -> bytes:
    """A picture as PNG, without loss; EXIF goes along, so that it is turned as its file would be."""
    exif = picture.getexif().tobytes() if picture.getexif() else None
    if picture.mode not in {"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"}:
        picture = picture.convert("RGB")
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1, **({"exif": exif} if exif else {}))
    return file.getvalue()


def picture_of(array: NDArray[Any]) -> Image.Image:
    """An array as a picture.

    Args:
        array: (h, w), (h, w, c) or (c, h, w) of 1, 3 or 4 channels; whole numbers of 0-255, or
            floats of 0-1.

    Raises:
        DecodeError: another shape, or values in another range.
    """
    if array.ndim == 3 and array.shape[-1] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, -1)  # (c, h, w) -> (h, w, c)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in _CHANNELS):
        raise DecodeError(
            f"an array of shape {array.shape} is no image; (h, w), (h, w, 3) or (3, h, w) is needed"
        )
    if not array.size:
        raise DecodeError(f"an array of shape {array.shape} has no pixels")
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype == bool:
        return Image.fromarray(array.astype(np.uint8) * 255)
    if array.dtype.kind not in "iuf":
        raise DecodeError(f"an array of {array.dtype} is no image")
    values = array.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    top = 1.0 if array.dtype.kind == "f" else 255.0
    if not (low >= 0 and high <= top):  # NaN too
        raise DecodeError(
            f"an image of {array.dtype} holds {low:.3g} to {high:.3g}; 0 to {top:g} is needed",
            hint="undo its normalisation, or give whole numbers of 0 to 255 as uint8",
        )
    return Image.fromarray(np.rint(values * (255.0 / top)).astype(np.uint8))
