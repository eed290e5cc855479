"""Odd pictures give the right pixels, broken ones one reason, and nothing else ever comes out."""

import io
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval_engine.errors import DecodeError
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.testing.images import encoded, jpeg, photo
from tests.broken_images import BrokenImage, OddImage, broken_images, odd_images, rgb

PHOTOS = Path(__file__).parents[1] / "../shared/data/flickr8k/images"


@pytest.mark.parametrize("odd", odd_images(), ids=lambda odd: odd.name)
def test_odd_picture_gives_its_pixels(odd: OddImage) -> None:
    picture = decode(odd.data)

    assert picture.mode == "RGB"
    difference = np.abs(np.asarray(picture).astype(int) - odd.expected)
    assert difference.shape == odd.expected.shape
    assert difference.max() <= odd.tolerance


@pytest.mark.parametrize("broken", broken_images(), ids=lambda broken: broken.name)
def test_broken_picture_gives_one_reason(broken: BrokenImage) -> None:
    with pytest.raises(DecodeError, match=broken.reason) as caught:
        decode(broken.data)

    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 220


def test_jpeg_is_bit_identical_to_pillow() -> None:
    data = jpeg(4, (1600, 1100))

    assert np.array_equal(np.asarray(decode(data)), rgb(Image.open(io.BytesIO(data))))


def test_every_real_photo_is_bit_identical_to_pillow() -> None:
    files = sorted(PHOTOS.glob("*.jpg"))[:40] if PHOTOS.is_dir() else []
    if not files:
        pytest.skip("the Flickr8k part is not here")
    for file in files:
        assert np.array_equal(np.asarray(decode(file.read_bytes())), rgb(Image.open(file)))


def test_pixel_limit_is_the_callers() -> None:
    data = encoded(photo(0, (30, 20)), "PNG")

    assert decode(data, max_pixels=600).size == (30, 20)
    with pytest.raises(DecodeError, match="30x20 = 600 pixels; at most 599"):
        decode(data, max_pixels=599)


def test_large_phone_photo_passes_without_warning() -> None:
    wide = Image.new("1", (12_000, 8_000))

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert decode(encoded(wide, "PNG")).size == (12_000, 8_000)
    assert not seen


def test_threads_get_the_same_pixels_and_reasons() -> None:
    good, bad = odd_images(), broken_images()

    def outcome(data: bytes) -> bytes | str:
        try:
            return decode(data).tobytes()
        except DecodeError as error:
            return error.message

    every = [*(odd.data for odd in good), *(broken.data for broken in bad)]
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(outcome, every * 4))
    assert threaded == [outcome(data) for data in every] * 4


def test_folder_of_200_good_and_20_broken_of_each_kind(tmp_path: Path) -> None:
    for seed in range(200):
        (tmp_path / f"good-{seed:03}.jpg").write_bytes(jpeg(seed))
    expected: dict[str, str] = {}
    for seed in range(20):
        for broken in broken_images(seed):
            (tmp_path / f"{seed:02}-{broken.name}").write_bytes(broken.data)
            expected[f"{seed:02}-{broken.name}"] = broken.reason
    decoded, reasons = {}, {}
    for item in open_source(f"folder:{tmp_path}").items():
        try:
            decoded[item.id] = np.asarray(decode(read_bytes(item.uri)))
        except DecodeError as error:
            reasons[item.id] = error.message

    assert sorted(decoded) == [f"good-{seed:03}.jpg" for seed in range(200)]
    assert np.array_equal(decoded["good-117.jpg"], rgb(Image.open(io.BytesIO(jpeg(117)))))
    assert reasons.keys() == expected.keys()
    assert [name for name in reasons if not re.search(expected[name], reasons[name])] == []


SAMPLES = [odd.data for odd in odd_images() if len(odd.data) < 20_000] + [jpeg()]


@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from(SAMPLES),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.floats(0.1, 1.0),
)
def test_damaged_bytes_decode_or_say_why(
    data: bytes, edits: list[tuple[float, int]], keep: float
) -> None:
    damaged = bytearray(data[: max(1, int(len(data) * keep))])
    for where, value in edits:
        damaged[int(where * len(damaged))] = value
    try:
        picture = decode(bytes(damaged), max_pixels=4_000_000)
    except DecodeError:
        return
    assert picture.mode == "RGB"
