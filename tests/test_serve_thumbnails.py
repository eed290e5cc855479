"""Small images outlive the server that made them, and never show what is no longer true."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from retrieval_engine import encode, open_encoder
from retrieval_engine.machine import cache_folder
from retrieval_engine.serve.thumbnails import Thumbnails
from retrieval_engine.testing.images import jpeg
from tests.serving import served

KEYS = ["0123456789abcdef" * 4, "a" * 64, "b" * 64, "c" * 64]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_after_a_restart_the_grid_is_served_without_an_original(tmp_path: Path) -> None:
    photos, store = tmp_path / "photos", tmp_path / "store"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").write_bytes(jpeg(number, (640, 480)))
    encode(f"folder:{photos}", store, encoder=open_encoder("vlre-tiny"))
    before = files(store)
    with served(store) as client:
        hits = client.post("/api/search", json={"text": "a dog"}).json()["hits"]
        made = [client.get(hit["thumbnail"]).content for hit in hits[:2]]
        (photos / hits[2]["id"]).write_bytes(jpeg(9))  # it is shown, and kept under no other's name
        assert client.get(hits[2]["thumbnail"]).status_code == 200
    assert len(files(tmp_path / "cache")) == 2
    for path in photos.iterdir():
        path.write_bytes(b"no picture")
    with served(store) as client:
        assert [client.get(hit["thumbnail"]).content for hit in hits[:2]] == made
        assert client.get(hits[0]["image"]).status_code == 400  # the original is needed for this
        assert client.get(hits[2]["thumbnail"]).status_code == 400
    with Image.open(io.BytesIO(made[0])) as picture:
        assert (picture.format, picture.size) == ("JPEG", (320, 240))
    assert files(store) == before


def test_what_is_cut_or_spoilt_counts_as_absent(tmp_path: Path) -> None:
    kept = Thumbnails(tmp_path / "small", 1 << 20)
    kept.put(KEYS[0], b"image" * 100)
    assert kept.get(KEYS[0]) == b"image" * 100
    [file] = files(tmp_path)
    whole = file.read_bytes()
    for broken in (whole[:-1], whole[:20], b"", whole[:-1] + b"!", b"\0" * len(whole)):
        file.write_bytes(broken)
        assert kept.get(KEYS[0]) is None
    kept.put(KEYS[0], b"image" * 100)
    assert files(tmp_path) == [file]
    assert file.read_bytes() == whole


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    kept = Thumbnails(tmp_path, 2_500)
    for age, key in enumerate(KEYS[:2]):
        kept.put(key, b"1" * 900)
        os.utime(tmp_path / key[:2] / key, (age, age))
    (tmp_path / "aa" / "half.12345678.partial").write_bytes(b"1" * 500)  # of one that was killed
    os.utime(tmp_path / "aa" / "half.12345678.partial", (0, 0))
    kept.put(KEYS[2], b"1" * 900)
    assert [path.name for path in files(tmp_path)] == [KEYS[1], KEYS[2]]
    assert kept.get(KEYS[0]) is None


def test_a_folder_that_cannot_be_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept = Thumbnails(tmp_path / "file" / "small", 1 << 20)
    kept.put(KEYS[0], b"image")
    assert kept.get(KEYS[0]) is None
    assert "small images are not kept in" in caplog.text
    Thumbnails(tmp_path / "never", 0).put(KEYS[0], b"image")
    Thumbnails(tmp_path / "never", 9).put("../../elsewhere", b"image")
    assert not (tmp_path / "never").exists()


def test_the_users_own_place_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLRE_CACHE", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/vlre")
    monkeypatch.setenv("VLRE_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
