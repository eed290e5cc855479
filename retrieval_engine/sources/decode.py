"""Bytes to an RGB picture, or one line that says why not.

What this does beyond `Image.open(...).convert("RGB")`, whose pixels it otherwise keeps bit for bit:

* EXIF orientation is applied (the authors' code does not; most of their photos carry none).
* Grey pictures of 16 and 32 bits or floats are scaled to 8 bits; Pillow would clip at 255, which
  turns nearly all of a 16-bit picture white.
* Only the first frame of an animation is used.
* Transparency is dropped as `convert("RGB")` does it: the colours under a transparent pixel are
  kept, nothing is laid on white. The authors' preprocessing does the same.
* A PNG or JPEG that was damaged or cut off is refused (`whole.py`): Pillow shows noise or grey.
* The number of pixels is checked before any is decoded, and a broken picture is an error, never
  a grey patch.
* Memory of one picture is bounded to about 1 GB: above `REDUCED_ABOVE` pixels a picture is decoded
  at a half or less of its width and height, in strips; of those above 50 million pixels a process
  decodes one at a time.
"""

import importlib
import importlib.util
import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from retrieval_engine.errors import DecodeError
from retrieval_engine.records import ImageFacts
from retrieval_engine.sources.exif import BROKEN, read_facts
from retrieval_engine.sources.reading import one_line
from retrieval_engine.sources.whole import find_fault

MAX_PIXELS = 178_956_970
"""Largest picture decoded by default: twice `PIL.Image.MAX_IMAGE_PIXELS`, where Pillow stops."""
REDUCED_ABOVE = 100_000_000
"""Pictures of more pixels lose detail no model reads: their width and height are halved or less."""

_FORMATS = (
    *("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO"),
    "QOI",
)
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_HEIF_SUFFIXES = (".heic", ".heif", ".hif")
# Their libraries hold some 20 bytes a pixel while they decode.
_HEAVY_FORMATS = {"WEBP", "JPEG2000", "AVIF", "HEIF"}
_HEAVY_SHARE = 3
_ALONE_ABOVE = 50_000_000
_STRIP_PIXELS = 1 << 22
_large = threading.Lock()
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


@cache
def picture_suffixes() -> frozenset[str]:
    """Endings, in lower case and with the dot, of the files that `decode` can decode."""
    Image.init()
    known = (suffix for suffix, kind in Image.EXTENSION.items() if kind in {*_FORMATS, "MPO"})
    return frozenset((*known, *_HEIF_SUFFIXES))


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, least_side: int = 0) -> Image.Image:
    """The picture in these bytes, upright, in mode RGB.

    Args:
        data: a whole file: JPEG, PNG, GIF, WebP, BMP, TIFF, PPM, JPEG 2000, AVIF, HEIC, ICO, QOI.
        max_pixels: refuse a picture with more pixels than this, before decoding it; a third of
            it for WebP, JPEG 2000, AVIF and HEIC.
        least_side: a JPEG may be decoded at a half, a quarter or an eighth of its size as long as
            no side falls below this many pixels; 0 keeps every pixel.

    Raises:
        DecodeError: the bytes are no picture that can be used; the message is the reason.
    """
    return decode_photo(data, max_pixels=max_pixels, least_side=least_side)[0]


def decode_photo(
    data: bytes, *, max_pixels: int = MAX_PIXELS, least_side: int = 0
) -> tuple[Image.Image, ImageFacts]:
    """The picture, as `decode` gives it, and what its file says about itself."""
    image = _open(data)
    facts = read_facts(image, len(data))
    width, height = image.size
    if width < 1 or height < 1:
        raise DecodeError(f"{image.format} of {width}x{height} pixels has no pixels")
    weight = _HEAVY_SHARE if image.format in _HEAVY_FORMATS else 1
    most = max_pixels // weight
    if width * height > most:
        raise DecodeError(
            f"{image.format} of {width}x{height} = {width * height:,} pixels; "
            f"at most {most:,} are decoded"
        )
    small = _scale(min(width, height), least_side) if image.format == "JPEG" else 1
    if weight * width * height <= _ALONE_ABOVE:
        return _decoded(image, data, small), facts
    with _large:
        return _decoded(image, data, max(small, _reduction(width * height))), facts


def facts_of(data: bytes) -> ImageFacts:
    """What an image's file says about itself; no pixel is decoded."""
    try:
        return read_facts(_open(data), len(data))
    except DecodeError:
        return ImageFacts(bytes=len(data))


def _reduction(pixels: int) -> int:
    """By how much the edges of a picture are divided: 1, 2, 4 or 8."""
    return next(k for k in (1, 2, 4, 8) if pixels <= REDUCED_ABOVE * k * k or k == 8)


def _scale(side: int, least: int) -> int:
    """By how much a side may be divided, 1, 2, 4 or 8, without falling below a number of pixels."""
    return next(k for k in (8, 4, 2, 1) if side >= k * least or k == 1) if least else 1


def _decoded(image: Image.Image, data: bytes, by: int) -> Image.Image:
    """The picture with its edges divided by a number."""
    kind, turn = image.format, _orientation(image)
    drafted = by if by > 1 and image.draft("RGB", _divided(image.size, by)) else 1
    try:
        image.load()
    except BROKEN as error:
        raise DecodeError(f"broken or truncated {kind}: {one_line(error)}") from error
    fault = find_fault(data, image, lambda changed: _again(changed, image.size, drafted))
    if fault:
        raise DecodeError(f"broken or truncated {kind}: {fault}")
    picture = _rgb(image, by // drafted)
    return picture if turn is None else picture.transpose(turn)


def _again(data: bytes, size: tuple[int, int], drafted: int) -> Image.Image:
    """The same picture out of changed bytes, not yet in RGB."""
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    if drafted > 1:
        image.draft("RGB", size)
    image.load()
    return image


def _divided(size: tuple[int, int], by: int) -> tuple[int, int]:
    return max(1, size[0] // by), max(1, size[1] // by)


def _open(data: bytes) -> Image.Image:
    """The picture with its header read and no pixel decoded."""
    _silence_pillow()
    if not data:
        raise DecodeError("the file is empty")
    formats: tuple[str, ...] = _FORMATS
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        formats = (*_FORMATS, _heif())
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise DecodeError(f"decompression bomb: {one_line(error)}") from error
    except UnidentifiedImageError as error:
        raise DecodeError(
            f"not a picture: {len(data):,} bytes that begin with {data[:16]!r}"
        ) from error
    except BROKEN as error:
        raise DecodeError(f"broken picture header: {one_line(error)}") from error


def _heif() -> str:
    """Name of the HEIF format after its reader was registered."""
    if importlib.util.find_spec("pillow_heif") is None:
        raise DecodeError("HEIC picture; install pillow-heif to decode it")
    importlib.import_module("pillow_heif").register_heif_opener()
    return "HEIF"


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """How the picture is turned upright, as its EXIF says; EXIF that cannot be read says nothing."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except BROKEN:
        return None
    return _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None


def _rgb(image: Image.Image, by: int) -> Image.Image:
    """The loaded picture in mode RGB, its edges divided by a number; in strips when that is not 1.

    The strips keep what is held beside the picture itself small.
    """
    deep = image.mode.startswith("I") or image.mode == "F"
    black, white = _range(image) if deep else (0.0, 0.0)
    try:
        if by == 1 and not deep:
            return image if image.mode == "RGB" else image.convert("RGB")
        out = Image.new("RGB", (-(-image.width // by), -(-image.height // by)))
        for top, strip in _strips(image, by):
            plain = _eight_bits(strip, black, white) if deep else strip
            plain = plain.convert("RGB")
            out.paste(plain.reduce(by) if by > 1 else plain, (0, top // by))
    except BROKEN as error:
        raise DecodeError(f"{image.format} in mode {image.mode}: {one_line(error)}") from error
    return out


def _strips(image: Image.Image, by: int) -> Iterator[tuple[int, Image.Image]]:
    """Top edge and picture of each strip; heights are multiples of `by`."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width // by) * by
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _range(image: Image.Image) -> tuple[float, float]:
    """The samples of a deeper grey picture that are black and white in 8 bits.

    16-bit samples are scaled from 0..65535. Samples of 32 bits have no agreed white: 0..65535
    counts as 16 bits, floats in 0..1 and 0..255 as such, any other range is stretched.
    """
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    low, high = np.inf, -np.inf
    for _, strip in _strips(image, 1):
        samples = np.asarray(strip)
        if not np.isfinite(samples).all():
            raise DecodeError("floating-point picture with NaN or infinite samples")
        low, high = min(low, float(samples.min())), max(high, float(samples.max()))
    known = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    fits = [top for top in known if low >= 0 and high <= top]
    return (0.0, fits[0]) if fits else (low, high)


def _eight_bits(image: Image.Image, black: float, white: float) -> Image.Image:
    """A grey picture of deeper samples as 8-bit grey."""
    unit = (np.asarray(image).astype(np.float64) - black) / ((white - black) or 1.0)
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
