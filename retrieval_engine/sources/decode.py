"""Bytes to an RGB picture, or one line that says why not.

What this does beyond `Image.open(...).convert("RGB")`, whose pixels it otherwise keeps bit for bit
(no JPEG draft mode: it changes large pictures):

* EXIF orientation is applied (the authors' code does not; most of their photos carry none).
* Grey pictures of 16 and 32 bits or floats are scaled to 8 bits; Pillow would clip at 255, which
  turns nearly all of a 16-bit picture white.
* Only the first frame of an animation is used.
* Transparency is dropped as `convert("RGB")` does it: the colours under a transparent pixel are
  kept, nothing is laid on white. The authors' preprocessing does the same.
* The checksums of a PNG are checked: Pillow shows damaged data as noise.
* The number of pixels is checked before any is decoded, and a broken picture is an error, never
  a grey patch.
"""

import importlib.util
import io
import logging
import re
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from retrieval_engine.errors import DecodeError

MAX_PIXELS = 178_956_970
"""Largest picture decoded by default: twice `PIL.Image.MAX_IMAGE_PIXELS`, where Pillow stops."""

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's readers raise on damaged or hostile bytes, found by fuzzing them.
_BROKEN = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, struct.error, zlib.error, Image.DecompressionBombError),
)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in these bytes, upright, in mode RGB.

    Args:
        data: a whole file: JPEG, PNG, GIF, WebP, BMP, TIFF, PPM, JPEG 2000, AVIF, ICO, or HEIC
            where pillow-heif is installed.
        max_pixels: refuse a picture with more pixels than this, before decoding it.

    Raises:
        DecodeError: the bytes are no picture that can be used; the message is the reason.
    """
    _silence_pillow()
    image = _open(data)
    width, height = image.size
    if width < 1 or height < 1:
        raise DecodeError(f"{image.format} of {width}x{height} pixels has no pixels")
    if width * height > max_pixels:
        raise DecodeError(
            f"{image.format} of {width}x{height} = {width * height:,} pixels; "
            f"at most {max_pixels:,} are decoded"
        )
    try:
        image.load()
    except _BROKEN as error:
        raise DecodeError(f"broken or truncated {image.format}: {_line(error)}") from error
    if image.format == "PNG":
        _check_png(data)
    return _rgb(_upright(image))


def _open(data: bytes) -> Image.Image:
    """The picture with its header read and no pixel decoded."""
    if not data:
        raise DecodeError("the file is empty")
    formats: tuple[str, ...] = _FORMATS
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        formats = (*_FORMATS, _heif())
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise DecodeError(f"decompression bomb: {_line(error)}") from error
    except UnidentifiedImageError as error:
        raise DecodeError(
            f"not a picture: {len(data):,} bytes that begin with {data[:16]!r}"
        ) from error
    except _BROKEN as error:
        raise DecodeError(f"broken picture header: {_line(error)}") from error


def _heif() -> str:
    """Name of the HEIF format after its reader was registered."""
    if importlib.util.find_spec("pillow_heif") is None:
        raise DecodeError("HEIC picture; install pillow-heif to decode it")
    importlib.import_module("pillow_heif").register_heif_opener()
    return "HEIF"


def _check_png(data: bytes) -> None:
    """Check the sums of the picture data, as libpng does; Pillow shows damaged data as noise."""
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if kind == b"IDAT" and end + 4 <= len(data):
            (promised,) = struct.unpack_from(">I", data, end)
            if zlib.crc32(view[at + 4 : end]) != promised:
                raise DecodeError("broken PNG: a checksum of its data does not agree")
        at = end + 4


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says; EXIF that cannot be read says nothing."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        return image
    method = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    try:
        return image.convert("RGB")
    except _BROKEN as error:
        raise DecodeError(f"{image.format} in mode {image.mode}: {_line(error)}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of deeper samples as 8-bit grey.

    16-bit samples are scaled from 0..65535. Samples of 32 bits have no agreed white: 0..65535
    counts as 16 bits, floats in 0..1 and 0..255 as such, any other range is stretched.
    """
    samples = np.asarray(image)
    if not np.isfinite(samples).all():
        raise DecodeError("floating-point picture with NaN or infinite samples")
    values = samples.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        black, white = 0.0, 65535.0
    else:
        known = (1.0, 255.0) if image.mode == "F" else (65535.0,)
        fits = [top for top in known if low >= 0 and high <= top]
        black, white = (0.0, fits[0]) if fits else (low, high)
    unit = (values - black) / ((white - black) or 1.0)
    return Image.fromarray(np.rint(unit * 255.0).astype(np.uint8))


def _silence_pillow() -> None:
    """Keep Pillow's warnings and log off stderr; what matters in them becomes a DecodeError.

    `catch_warnings` would swap the filters of the whole process under the feet of other
    threads, so one filter is put in and stays. Putting it in again costs a list look-up, and is
    needed wherever somebody has reset the filters since.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    log = logging.getLogger("PIL")
    if not log.handlers:  # a handler that does nothing turns off logging's own last resort
        log.addHandler(logging.NullHandler())


def _line(error: BaseException) -> str:
    """The error on one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
