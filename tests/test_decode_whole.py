"""A picture that was cut off is refused, HEIC decodes, and one picture's memory is bounded."""

import io
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval_engine.errors import DecodeError
from retrieval_engine.sources import decode as decoding
from retrieval_engine.sources.decode import decode
from retrieval_engine.testing.images import encoded, photo
from tests.broken_images import rgb

END = b"\xff\xd9"
PHOTOS = Path(__file__).parents[1] / "../shared/data/flickr8k/images"


def noisy(seed: int = 0, size: tuple[int, int] = (200, 152)) -> Image.Image:
    """A picture whose last rows are no plain grey."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 30, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(photo(seed, size)) + noise, 0, 255).astype(np.uint8))


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimized": {"optimize": True},
    "full-colour": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 2},
    "with-thumbnail": {"exif": b"Exif\0\0" + encoded(photo(9), "JPEG")},
}


def scan_start(data: bytes) -> int:
    """Where the data of the first scan begin."""
    at = 2
    while True:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            return at + 2 + length
        at += 2 + length


@pytest.mark.parametrize("form", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_that_was_cut_and_closed_again_is_refused(form: str, mode: str) -> None:
    picture = noisy().convert(mode)
    data = encoded(picture, "JPEG", quality=85, **JPEGS[form])
    start = scan_start(data)
    assert np.array_equal(np.asarray(decode(data)), rgb(Image.open(io.BytesIO(data))))

    for share in np.linspace(0.02, 0.97, 24):
        cut = data[: start + int((len(data) - start) * share)]
        for tail in (END, b"", END + b"later bytes", END + data):
            with pytest.raises(DecodeError, match="broken or truncated JPEG"):
                decode(cut + tail)


def test_real_photos_pass_whole_and_fail_cut() -> None:
    files = sorted(PHOTOS.glob("*.jpg"))[40:60] if PHOTOS.is_dir() else []
    if not files:
        pytest.skip("the Flickr8k part is not here")
    for file in files:
        data = file.read_bytes()
        assert decode(data).size == Image.open(io.BytesIO(data)).size
        for share in (0.2, 0.5, 0.8, 0.98):
            with pytest.raises(DecodeError, match="truncated"):
                decode(data[: int(len(data) * share)] + END)


@pytest.mark.parametrize("form", JPEGS)
@pytest.mark.parametrize("grey", [127, 128, 129])
def test_pictures_that_end_in_plain_grey_are_whole(form: str, grey: int) -> None:
    picture = noisy()
    picture.paste((grey, grey, grey), (0, 60, 200, 152))
    data = encoded(picture, "JPEG", **JPEGS[form])

    assert np.array_equal(np.asarray(decode(data)), rgb(Image.open(io.BytesIO(data))))
    plain = encoded(Image.new("RGB", (640, 480), (grey,) * 3), "JPEG", **JPEGS[form])
    assert decode(plain).size == (640, 480)


def test_bytes_between_and_behind_the_markers_change_nothing() -> None:
    data = encoded(noisy(), "JPEG")
    padded = data[:2] + b"\xff\xff" + data[2:]

    for odd in (padded, data + b"\0" * 500, data + END, data + data):
        assert np.array_equal(np.asarray(decode(odd)), np.asarray(decode(data)))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 5),
    quality=st.integers(20, 95),
    progressive=st.booleans(),
    share=st.floats(0.0, 0.96),
)
def test_no_cut_passes(seed: int, quality: int, progressive: bool, share: float) -> None:
    data = encoded(noisy(seed, (96, 80)), "JPEG", quality=quality, progressive=progressive)
    start = scan_start(data)

    assert decode(data).size == (96, 80)
    with pytest.raises(DecodeError):
        decode(data[: start + int((len(data) - start - 2) * share)] + END)


def test_cut_png_is_refused_also_where_only_its_end_is_missing() -> None:
    data = encoded(noisy(), "PNG")

    for cut in (1, 2, 8, 12, 13, 20, 100, len(data) // 2):
        with pytest.raises(DecodeError, match="broken or truncated PNG"):
            decode(data[:-cut])
    assert decode(data + b"more").size == (200, 152)


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_decodes_without_asking_for_it(tmp_path: Path, orientation: int) -> None:
    script = """
import sys, pillow_heif
from PIL import Image
pillow_heif.register_heif_opener()
exif = Image.Exif(); exif[0x0112] = int(sys.argv[3])
Image.open(sys.argv[1]).save(sys.argv[2], "HEIF", quality=95, exif=exif)
"""
    photo(4, (160, 120)).save(tmp_path / "a.png")
    files = [str(tmp_path / name) for name in ("a.png", "a.heic")]
    subprocess.run([sys.executable, "-c", script, *files, str(orientation)], check=True)
    data = (tmp_path / "a.heic").read_bytes()
    picture = decode(data)

    expected = photo(4, (160, 120))  # HEIF turns pictures itself: its EXIF must not do so again
    assert picture.mode == "RGB"
    assert picture.size == expected.size
    assert np.abs(np.asarray(picture).astype(int) - rgb(expected)).mean() < 4
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(DecodeError):
            decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("PNG", "L"),
        ("PNG", "RGBA"),
    ],
)
def test_picture_above_the_bound_is_the_same_picture_smaller(
    monkeypatch: pytest.MonkeyPatch, kind: str, mode: str
) -> None:
    picture = photo(6, (403, 301))
    data = encoded(picture.quantize(250) if mode == "P" else picture.convert(mode), kind)
    whole = decode(data)
    monkeypatch.setattr(decoding, "REDUCED_ABOVE", 10_000)
    monkeypatch.setattr(decoding, "_ALONE_ABOVE", 10_000)
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", 5_000)

    small = decode(data)

    assert small.mode == "RGB"
    assert small.size == (101, 76)  # a quarter, rounded up
    expected = whole.resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(expected)).mean() < 2.5


def test_deep_grey_in_strips_equals_deep_grey_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(0, 65535, 90 * 70).reshape(70, 90)
    files = [
        encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG"),
        encoded(Image.fromarray((ramp * 3 - 999).astype(np.float32)), "TIFF"),
        encoded(Image.fromarray(ramp.astype(np.int32)), "TIFF"),
    ]
    at_once = [np.asarray(decode(data)) for data in files]
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", 300)

    for data, expected in zip(files, at_once, strict=True):
        assert np.array_equal(np.asarray(decode(data)), expected)
    assert at_once[0][0, 0, 0] == 0
    assert at_once[0][-1, -1, 0] == 255


def test_cut_jpeg_above_the_bound_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "REDUCED_ABOVE", 10_000)
    monkeypatch.setattr(decoding, "_ALONE_ABOVE", 10_000)
    for progressive in (False, True):
        data = encoded(noisy(0, (400, 304)), "JPEG", progressive=progressive)
        assert decode(data).size == (100, 76)
        with pytest.raises(DecodeError, match="truncated"):
            decode(data[: len(data) * 2 // 3] + END)


def test_formats_that_need_most_memory_have_a_lower_limit() -> None:
    picture = Image.new("RGB", (40, 30))

    for kind in ("WEBP", "JPEG2000", "AVIF"):
        with pytest.raises(DecodeError, match=r"1,200 pixels; at most 1,000 are decoded"):
            decode(encoded(picture, kind), max_pixels=3000)
    assert decode(encoded(picture, "PNG"), max_pixels=3000).size == (40, 30)


@pytest.mark.whole
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read there")
@pytest.mark.parametrize("mode", ["RGB", "P", "I;16"])
def test_peak_memory_of_the_largest_picture_is_bounded(tmp_path: Path, mode: str) -> None:
    width, height = 13_300, 13_400  # just below the limit
    path = tmp_path / "a.png"
    path.write_bytes(_png(width, height, mode))
    script = """
import sys
from retrieval_engine.sources.decode import decode
def peak():
    lines = open("/proc/self/status").read().split("\\n")
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024
data = open(sys.argv[1], "rb").read()
before = peak()
size = decode(data).size
print(*size, peak() - before)
"""
    command = [sys.executable, "-c", script, str(path)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    small_width, small_height, peak = map(int, out.split())

    assert (small_width, small_height) == (6650, 6700)
    assert peak < 1_100_000_000


def _png(width: int, height: int, mode: str) -> bytes:
    """A plain PNG, made without holding it."""
    depth, colour, channels = {"RGB": (8, 2, 3), "P": (8, 3, 1), "I;16": (16, 0, 2)}[mode]

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + check

    packer = zlib.compressobj(1)
    row = b"\0" + bytes((7,)) * (width * channels)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = chunk(b"IHDR", size + bytes((depth, colour, 0, 0, 0)))
    palette = chunk(b"PLTE", bytes(range(24))) if mode == "P" else b""
    data = chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + palette + data
