"""Whether a picture file is whole, where Pillow shows what is missing as noise or as grey.

A JPEG that was cut off and closed again with its end mark decodes without a complaint. What Pillow
does not tell is found out thus: bytes put in after the last scan change nothing when all of the
picture was there before, and change it when the decoder still waited for data.
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image, ImageChops

_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_SOS, _EOI = 0xDA, 0xD9
_JUNK = bytes((37 * n + 11) % 251 for n in range(512))
_MIDDLE_GREY = range(112, 145)  # 128 is what libjpeg fills in; its neighbours may blend with it


def find_fault(
    data: bytes, image: Image.Image, decode: Callable[[bytes], Image.Image]
) -> str | None:
    """What is wrong with a JPEG or PNG that Pillow could load; None when it is whole.

    Args:
        data: the file.
        image: the picture as Pillow loaded it; for other formats nothing is looked at.
        decode: loads a changed JPEG just so.
    """
    if image.format == "PNG":
        return _png_fault(data)
    if image.format in {"JPEG", "MPO"}:
        return _jpeg_fault(data, image, decode)
    return None


def _png_fault(data: bytes) -> str | None:
    """Check the sums of the picture data, as libpng does, and that the end is there."""
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if kind == b"IEND":
            return None
        if kind == b"IDAT" and end + 4 <= len(data):
            (promised,) = struct.unpack_from(">I", data, end)
            if zlib.crc32(view[at + 4 : end]) != promised:
                return "a checksum of its data does not agree"
        at = end + 4
    return "it ends before its end mark"


@dataclass(slots=True)
class _Scans:
    """What the markers of a JPEG say.

    Attributes:
        is_progressive: its scans refine each other.
        missing: by component, the coefficients of which no scan has the last bit.
        end: where the data of the last scan end, or -1.
        is_closed: the end mark is there.
    """

    is_progressive: bool = False
    missing: dict[int, set[int]] = field(default_factory=dict)
    end: int = -1
    is_closed: bool = False


def _jpeg_fault(
    data: bytes, image: Image.Image, decode: Callable[[bytes], Image.Image]
) -> str | None:
    scans = _scans(data)
    if scans.end < 0:
        return None  # a form of the markers that is not understood here; Pillow read it
    if not scans.is_closed:
        return "it ends before its end mark"
    if any(scans.missing.values()):
        return "scans are missing"
    if not (scans.is_progressive or _ends_grey(image)):
        return None
    try:
        other = decode(data[: scans.end] + _JUNK + b"\xff\xd9")
        changed = ImageChops.difference(image, other).getbbox() is not None
    except (OSError, ValueError, SyntaxError):
        changed = True
    return "its data end before its last row" if changed else None


def _ends_grey(image: Image.Image) -> bool:
    """Whether the last pixel is the grey of data that are not there."""
    last = image.getpixel((image.width - 1, image.height - 1))
    values = last if isinstance(last, tuple) else (last,)
    return all(value is not None and int(value) in _MIDDLE_GREY for value in values)


def _scans(data: bytes) -> _Scans:
    """Walk over the markers of the first picture in the file."""
    scans, at = _Scans(), 2
    while at + 4 <= len(data) or data[at : at + 2] == b"\xff\xd9":
        if data[at] != 0xFF:
            found = _NEXT_MARKER.search(data, at)  # bytes between markers are passed over
            if found is None:
                return scans
            at = found.start()
        marker = data[at + 1]
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _EOI:
            scans.is_closed = True
            return scans
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        at += 2 + length
        if marker in _FRAMES:
            _start_frame(scans, marker, body)
        elif marker == _SOS:
            _take_scan(scans, body)
            found = _NEXT_MARKER.search(data, at)
            scans.end = at = found.start() if found else len(data)
    return scans


def _start_frame(scans: _Scans, marker: int, body: bytes) -> None:
    scans.is_progressive = marker in _PROGRESSIVE
    scans.missing = {component: set(range(64)) for component in body[6::3]}


def _take_scan(scans: _Scans, body: bytes) -> None:
    """Note which coefficients a scan completes: `n, n times (component, tables), from, to, bits`."""
    count = body[0] if body else 0
    if len(body) < 4 + 2 * count:
        return
    first, last, bits = body[1 + 2 * count : 4 + 2 * count]
    if not scans.is_progressive:
        first, last, bits = 0, 63, 0
    for component in body[1 : 1 + 2 * count : 2]:
        if component in scans.missing and bits & 0x0F == 0:
            scans.missing[component] -= set(range(first, last + 1))
