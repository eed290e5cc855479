"""Every kind of odd or broken picture that a folder of the world holds, drawn here as bytes.

`odd_images()` must be decoded rightly, `broken_images()` must be reported, each for itself alone.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval_engine.testing.images import SIZE, encoded, jpeg, photo


@dataclass(frozen=True, slots=True, kw_only=True)
class OddImage:
    """A picture that is unusual and whole.

    Attributes:
        name: what is odd about it, with its file extension.
        data: the file.
        expected: (h, w, 3) uint8 pixels that decoding must give.
        tolerance: largest difference of a pixel allowed; above 0 for lossy formats.
    """

    name: str
    data: bytes
    expected: NDArray[np.uint8]
    tolerance: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenImage:
    """A file that is no usable picture.

    Attributes:
        name: what is wrong with it, with its file extension.
        data: the file.
        reason: regular expression that the reported reason matches.
    """

    name: str
    data: bytes
    reason: str


def rgb(image: Image.Image) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 pixels of a picture."""
    return np.asarray(image.convert("RGB"))


def odd_images() -> list[OddImage]:
    """Pictures that must be decoded, with the pixels they must give."""
    return [*_odd_modes(), *_deep_greys(), *_odd_containers()]


def _odd_modes() -> Iterator[OddImage]:
    picture = photo()
    cmyk = picture.convert("CMYK")
    yield OddImage(
        name="cmyk.jpg",
        data=encoded(cmyk, "JPEG", quality=100, subsampling=0),
        expected=rgb(picture),
        tolerance=6,
    )
    palette = picture.quantize(16)
    yield OddImage(name="palette.png", data=encoded(palette, "PNG"), expected=rgb(palette))
    yield OddImage(
        name="palette-one-transparent.png",
        data=encoded(palette, "PNG", transparency=3),
        expected=rgb(palette),
    )
    yield OddImage(
        name="palette-transparent-bytes.png",
        data=encoded(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        expected=rgb(palette),
    )
    clear = picture.copy()
    clear.putalpha(Image.linear_gradient("L").resize(SIZE))
    yield OddImage(name="rgba.png", data=encoded(clear, "PNG"), expected=rgb(picture))
    grey = picture.convert("L")
    grey_clear = grey.copy()
    grey_clear.putalpha(7)
    yield OddImage(name="grey-alpha.png", data=encoded(grey_clear, "PNG"), expected=rgb(grey))
    yield OddImage(name="grey.png", data=encoded(grey, "PNG"), expected=rgb(grey))
    bits = picture.convert("1")
    yield OddImage(name="one-bit.png", data=encoded(bits, "PNG"), expected=rgb(bits))


def _deep_greys() -> Iterator[OddImage]:
    grey = np.asarray(photo().convert("L"))
    expected = np.repeat(grey[..., None], 3, axis=2)
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    yield OddImage(name="grey16.png", data=encoded(sixteen, "PNG"), expected=expected)
    yield OddImage(name="grey16.tif", data=encoded(sixteen, "TIFF"), expected=expected)
    integers = Image.fromarray(grey.astype(np.int32) * 257)
    yield OddImage(name="grey32.tif", data=encoded(integers, "TIFF"), expected=expected)
    unit = Image.fromarray(grey.astype(np.float32) / 255)
    yield OddImage(name="float-0-1.tif", data=encoded(unit, "TIFF"), expected=expected)
    bytes_as_float = Image.fromarray(grey.astype(np.float32))
    yield OddImage(name="float-0-255.tif", data=encoded(bytes_as_float, "TIFF"), expected=expected)
    span = grey.astype(np.float32) - grey.min()
    stretched = np.rint(span * (255 / span.max())).astype(np.uint8)
    yield OddImage(
        name="float-any-range.tif",
        data=encoded(Image.fromarray(span * 1000 - 7000), "TIFF"),
        expected=np.repeat(stretched[..., None], 3, axis=2),
    )


def _odd_containers() -> Iterator[OddImage]:
    picture, other = photo(), photo(1)
    for kind, name in (("GIF", "animated.gif"), ("WEBP", "animated.webp"), ("PNG", "animated.png")):
        options = {"lossless": True} if kind == "WEBP" else {}
        first = picture.quantize(64).convert("RGB") if kind == "GIF" else picture
        data = encoded(first, kind, save_all=True, append_images=[other], **options)
        yield OddImage(name=name, data=data, expected=rgb(first))
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield OddImage(
            name=f"exif-{orientation}.png",
            data=encoded(_stored_as(picture, orientation), "PNG", exif=exif),
            expected=rgb(picture),
        )
    yield OddImage(
        name="exif-garbage.png",
        data=encoded(picture, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9),
        expected=rgb(picture),
    )
    ribbon = photo(2, (4000, 1))
    yield OddImage(name="ribbon.png", data=encoded(ribbon, "PNG"), expected=rgb(ribbon))
    dot = photo(3, (1, 1))
    yield OddImage(name="one-pixel.png", data=encoded(dot, "PNG"), expected=rgb(dot))
    for kind, name in (("BMP", "plain.bmp"), ("PPM", "plain.ppm"), ("TIFF", "plain.tif")):
        yield OddImage(name=name, data=encoded(picture, kind), expected=rgb(picture))
    data = jpeg()
    yield OddImage(name="png-called.jpg", data=encoded(picture, "PNG"), expected=rgb(picture))
    yield OddImage(
        name="trailing-garbage.jpg",
        data=data + b"\0garbage" * 50,
        expected=rgb(Image.open(io.BytesIO(data))),
    )


def _stored_as(upright: Image.Image, orientation: int) -> Image.Image:
    """The picture as a camera stores it that says `orientation` (EXIF 2.3, tag 0x0112)."""
    turn = Image.Transpose
    undo = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    return upright.transpose(undo[orientation])


def broken_images(seed: int = 0) -> list[BrokenImage]:
    """Files that must be reported; another picture inside for each seed.

    Truncated files of every format, empty, not a picture in several ways, decompression bombs,
    damaged headers and data.
    """
    picture = photo(seed, (160, 120))
    return [*_truncated(picture), *_no_pictures(picture, seed), *_unusable(picture)]


def _truncated(picture: Image.Image) -> Iterator[BrokenImage]:
    for kind, suffix in (
        *(("JPEG", "jpg"), ("PNG", "png"), ("GIF", "gif"), ("WEBP", "webp"), ("BMP", "bmp")),
        *(("TIFF", "tif"), ("PPM", "ppm")),
    ):
        data = encoded(picture, kind)
        yield BrokenImage(
            name=f"truncated.{suffix}",
            data=data[: len(data) * 3 // 5],
            reason="(?i)truncated|broken",
        )


def _no_pictures(picture: Image.Image, seed: int) -> Iterator[BrokenImage]:
    yield BrokenImage(name="empty.jpg", data=b"", reason="empty")
    yield BrokenImage(
        name="header-only.jpg", data=encoded(picture, "JPEG")[:40], reason="picture|truncated"
    )
    yield BrokenImage(
        name="page.jpg", data=b"<!DOCTYPE html><html>404</html>", reason="not a picture.*DOCTYPE"
    )
    yield BrokenImage(
        name="lfs-pointer.png",
        data=b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
        reason="not a picture.*version https",
    )
    yield BrokenImage(
        name="noise.jpg",
        data=np.random.default_rng(seed).bytes(500),
        reason="not a picture: 500 bytes",
    )
    yield BrokenImage(name="zeros.png", data=bytes(2000), reason="not a picture")


def _unusable(picture: Image.Image) -> Iterator[BrokenImage]:
    yield BrokenImage(name="bomb.png", data=_png(50_000, 50_000), reason="bomb|pixels")
    yield BrokenImage(name="near-bomb.png", data=_png(20_000, 9_000), reason="bomb|pixels")
    yield BrokenImage(name="no-width.png", data=_png(0, 10), reason="picture|no pixels")
    yield BrokenImage(
        name="damaged-data.png", data=_damaged(encoded(picture, "PNG")), reason="broken"
    )
    nan = np.full((8, 8), np.nan, dtype=np.float32)
    yield BrokenImage(name="nan.tif", data=encoded(Image.fromarray(nan), "TIFF"), reason="NaN")
    yield BrokenImage(
        name="phone.heic", data=b"\0\0\0\x18ftypheic" + bytes(64), reason="HEIC|picture|broken"
    )


def _png(width: int, height: int) -> bytes:
    """A 1-bit PNG that promises this size and holds nearly no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _damaged(data: bytes) -> bytes:
    """The file with a run of bytes in its middle turned over."""
    middle = len(data) // 2
    return data[:middle] + bytes(b ^ 0xFF for b in data[middle : middle + 40]) + data[middle + 40 :]
