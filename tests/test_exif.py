"""What is read from the headers of real pictures, whole and broken ones."""

import io
import struct
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.records import ImageFacts, Item
from retrieval_engine.sources.decode import decode_photo, facts_of
from retrieval_engine.store import open_store
from retrieval_engine.store.compact import compact_store
from retrieval_engine.testing.images import photo_with
from tests import tiny

NORTH_WEST = {1: "N", 2: (47.0, 30.0, 36.0), 3: "W", 4: (122.0, 15.0, 0.0)}


def facts(kind: str = "JPEG", **tags: Any) -> ImageFacts:
    data = photo_with(kind=kind, **tags)
    _, found = decode_photo(data)
    assert facts_of(data) == found
    assert (found.bytes, found.width) == (len(data), 40)
    return found


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_date_camera_place_and_size_are_read_from_every_format(kind: str) -> None:
    found = facts(
        kind, make="Apple", model="iPhone 12", taken="2023:05:17 14:30:59", gps=NORTH_WEST
    )
    assert found.taken == datetime(2023, 5, 17, 14, 30, 59)
    assert (found.camera, found.width, found.height) == ("iPhone 12", 40, 30)
    assert found.latitude == pytest.approx(47.51)
    assert found.longitude == pytest.approx(-122.25)


def test_a_picture_without_exif_has_a_size_alone() -> None:
    for kind in ("JPEG", "PNG", "GIF", "BMP"):
        found = facts(kind)
        assert found == ImageFacts(width=40, height=30, bytes=found.bytes)


def test_width_and_height_are_of_the_upright_picture() -> None:
    data = photo_with(orientation=6)
    picture, found = decode_photo(data)
    assert (found.width, found.height) == picture.size == (30, 40)


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Apple", "iPhone 14 Pro", "iPhone 14 Pro"),
        ("Google", "Pixel 7", "Pixel 7"),
        ("NIKON CORPORATION", "NIKON D750", "NIKON D750"),
        ("Canon", "Canon EOS 5D\0\0", "Canon EOS 5D"),
        ("EASTMAN KODAK COMPANY", "KODAK EASYSHARE C613", "KODAK EASYSHARE C613"),
        ("SONY", "ILCE-7M3", "SONY ILCE-7M3"),
        ("FUJIFILM", " X-T4  ", "FUJIFILM X-T4"),
        ("", "DSC-W1", "DSC-W1"),
        ("samsung", "", "samsung"),
        ("", "", None),
    ],
)
def test_cameras_are_named_as_people_name_them(make: str, model: str, camera: str | None) -> None:
    assert facts(make=make, model=model).camera == camera


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("2023:05:17 14:30:59", datetime(2023, 5, 17, 14, 30, 59)),
        ("2023-05-17T14:30:59+09:00", datetime(2023, 5, 17, 14, 30, 59)),
        ("2023:05:17", datetime(2023, 5, 17)),
        ("2023:05:17 14:30", datetime(2023, 5, 17, 14, 30)),
        ("0000:00:00 00:00:00", None),
        ("2023:02:31 10:00:00", None),
        ("    :  :     :  :  ", None),
        ("yesterday", None),
    ],
)
def test_a_date_that_cannot_be_is_none(text: str, taken: datetime | None) -> None:
    assert facts(taken=text).taken == taken


def test_the_zone_beside_a_date_is_not_applied() -> None:
    assert facts(taken="2023:05:17 01:00:00", offset="+09:00").taken == datetime(2023, 5, 17, 1)


@pytest.mark.parametrize(
    "gps",
    [
        {**NORTH_WEST, 2: (IFDRational(47, 1), IFDRational(30, 0), IFDRational(0, 1))},
        {**NORTH_WEST, 2: (97.0, 0.0, 0.0)},
        {**NORTH_WEST, 1: "?"},
        {2: (47.0, 30.0, 36.0), 4: (122.0, 15.0, 0.0)},
        {1: "N", 2: (47.0, 30.0, 36.0)},
        {**NORTH_WEST, 4: (122.0,)},
    ],
)
def test_a_place_that_cannot_be_is_none(gps: dict[int, Any]) -> None:
    found = facts(gps=gps, model="X")
    assert (found.latitude, found.longitude, found.camera) == (None, None, "X")


def test_broken_exif_costs_its_values_and_nothing_else() -> None:
    whole = photo_with(make="Apple", model="iPhone 12", taken="2023:05:17 14:30:59", gps=NORTH_WEST)
    start = whole.index(b"Exif\0\0") + 6
    pixels = decode_photo(whole)[0].tobytes()
    for at in range(start, start + 200):
        for junk in (b"\0\0\0\0", b"\xff\xff\xff\xff", struct.pack(">I", 0x7FFFFFF0)):
            broken = whole[:at] + junk + whole[at + 4 :]
            picture, found = decode_photo(broken)
            assert {found.width, found.height} == {40, 30}
            assert len(picture.tobytes()) == len(pixels)


def test_headers_are_read_and_no_pixel_is() -> None:
    picture = Image.effect_noise((2000, 1500), 60).convert("RGB")
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0110] = "X100"
    picture.save(file, "JPEG", exif=exif)
    begin = time.process_time()
    for _ in range(20):
        assert facts_of(file.getvalue()).camera == "X100"
    assert (time.process_time() - begin) / 20 < 0.01  # decoding takes a tenth of a second


@pytest.mark.parametrize(
    ("item_id", "uri", "folder"),
    [
        ("2023/holiday/a.jpg", "/p/2023/holiday/a.jpg", "2023/holiday"),
        ("a.jpg", "/p/holiday/a.jpg", "holiday"),
        ("/p/holiday/a.jpg", "/p/holiday/a.jpg", "holiday"),
        ("17", "scenes:7/17", None),
        ("train/000017", "webdataset:/p/a.tar#17", "train"),
        ("http://host/a.jpg", "http://host/a.jpg", None),
    ],
)
def test_the_folder_of_an_item(item_id: str, uri: str, folder: str | None) -> None:
    assert Item(id=item_id, uri=uri).folder == folder


def test_encode_stores_them_as_columns_for_new_moved_and_known_images(tmp_path: Path) -> None:
    (tmp_path / "p" / "holiday").mkdir(parents=True)
    data = photo_with(make="Apple", model="iPhone 12", taken="2023:05:17 14:30:59", gps=NORTH_WEST)
    (tmp_path / "p" / "holiday" / "a.jpg").write_bytes(data)
    (tmp_path / "p" / "b.png").write_bytes(photo_with(kind="PNG"))
    options = EncodeOptions(features=("itc",), worker_kind="serial")
    how = {"encoder": str(tiny.save_blip(tmp_path / "model")), "options": options}
    encode(f"folder:{tmp_path / 'p'}", tmp_path / "s", **how)  # type: ignore[arg-type]
    (tmp_path / "p" / "copy.jpg").write_bytes(data)
    report = encode(f"folder:{tmp_path / 'p'}", tmp_path / "s", **how)  # type: ignore[arg-type]
    assert report.images.encoded == 0
    compact_store(tmp_path / "s")
    table = open_store(tmp_path / "s").items()
    names = ("id", "folder", "taken", "camera", "width", "bytes")
    rows = {row["id"]: row for row in table.select(names).to_pylist()}
    taken = datetime(2023, 5, 17, 14, 30, 59)
    a = {"taken": taken, "camera": "iPhone 12", "width": 40, "bytes": len(data)}
    assert rows["holiday/a.jpg"] == {"id": "holiday/a.jpg", "folder": "holiday", **a}
    assert rows["copy.jpg"] == {"id": "copy.jpg", "folder": "p", **a}
    assert rows["b.png"]["camera"] is None
    assert [str(table.schema.field(name).type) for name in ("taken", "width", "latitude")] == [
        "timestamp[us]",
        "int32",
        "double",
    ]
