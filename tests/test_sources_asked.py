"""The picture a person asks with: paths, uris, and a real server on this machine."""

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.errors import SourceError
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.sources.asked import read_asked
from retrieval_engine.testing.images import jpeg
from tests import tiny
from tests.loopback import serving
from tests.test_sources import lay_out

PICTURE = jpeg(5)
REDIRECTIONS = {
    "/moved": "/picture.jpg",
    "/loop": "/loop",
    "/to-file": "file:///etc/hostname",
    "/to-ftp": "ftp://127.0.0.1/picture.jpg",
}


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.partition("?")[0]
        if name in REDIRECTIONS:
            self.send_response(302)
            self.send_header("Location", REDIRECTIONS[name])
            self.end_headers()
        elif name == "/picture.jpg":
            self._start(len(PICTURE))
            self.wfile.write(PICTURE)
        elif name == "/short.jpg":
            self._start(len(PICTURE) + 7)
            self.wfile.write(PICTURE)
        elif name == "/slow.jpg":
            self._drip(b"x", 0.05)
        elif name == "/endless.jpg":
            self._drip(bytes(1 << 16), 0.0)
        elif name == "/silent.jpg":
            time.sleep(90)
        else:
            self.send_error(404)

    def _start(self, length: int | None = None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _drip(self, chunk: bytes, pause_s: float) -> None:
        self._start()
        try:
            while True:
                self.wfile.write(chunk)
                time.sleep(pause_s)
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    listening.daemon_threads = True
    with serving(listening) as address:
        yield address


def test_picture_of_a_server_also_after_a_redirection(server: str) -> None:
    assert read_asked(f"{server}/picture.jpg?size=large&x=%20") == PICTURE
    assert read_asked(f"{server}/moved") == PICTURE


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/none.jpg", "answers 404 Not Found"),
        ("/short.jpg", r"(ended after|cannot fetch)"),
        ("/loop", "cannot fetch|answers 302"),
        ("/to-file", "answers 302|cannot fetch"),
        ("/to-ftp", "answers 302|cannot fetch"),
    ],
)
def test_what_a_server_does_not_give_is_one_line(server: str, path: str, complaint: str) -> None:
    with pytest.raises(SourceError, match=complaint) as caught:
        read_asked(server + path)
    assert "\n" not in caught.value.message
    assert f"{server}{path}" in caught.value.message


def test_size_and_time_are_bounded(server: str) -> None:
    begun = time.monotonic()
    with pytest.raises(SourceError, match=r"has more than 1,000,000 bytes"):
        read_asked(f"{server}/endless.jpg", max_bytes=1_000_000)
    with pytest.raises(SourceError, match=r"is not here after 2 s; \d+ bytes came"):
        read_asked(f"{server}/slow.jpg", timeout_s=2)
    with pytest.raises(SourceError, match=r"cannot fetch .*timed out"):
        read_asked(f"{server}/silent.jpg", timeout_s=0.5)
    assert time.monotonic() - begun < 80


def test_nobody_listens_or_the_name_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    for url in ("http://127.0.0.1:9/a.jpg", "http://", "http://[bad/a.jpg", "https://127.0.0.1:9/"):
        with pytest.raises(SourceError) as caught:
            read_asked(url)
        assert url in caught.value.message


def test_files_by_path_home_and_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, {"a b?#%41.jpg": PICTURE, "scenes:1/2": b"mine", "~": b"tilde"})
    coded = "a%20b%3F%23%2541.jpg"

    assert read_asked("a b?#%41.jpg") == PICTURE
    assert read_asked("~/a b?#%41.jpg") == PICTURE
    assert read_asked(f"file://{tmp_path}/{coded}") == PICTURE
    assert read_asked(f"FILE://localhost{tmp_path}/{coded}") == PICTURE
    assert read_asked("scenes:1/2") == b"mine"
    assert read_asked("scenes:1/3").startswith(b"P6\n")
    with pytest.raises(SourceError, match=r"is on another machine, server") as caught:
        read_asked("file://server/share/a.jpg")
    assert "three slashes" in caught.value.hint
    with pytest.raises(SourceError, match=r"cannot read .*gone\.jpg: No such file"):
        read_asked(f"file://{tmp_path}/gone.jpg")


def test_source_is_no_picture_to_ask_with(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"folder:\S+ names a source, not a picture"):
        read_asked(f"folder:{tmp_path}")


def test_no_item_can_make_a_connection(server: str, tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.jpg": b"", "c.csv": f"a.jpg,x\n{server}/picture.jpg,y\n"})

    (item,) = open_source(f"captions:{tmp_path}/c.csv?allow_missing").items()
    assert item.id == "a.jpg"
    with pytest.raises(SourceError, match="nobody named it"):
        read_bytes(f"{server}/picture.jpg")


def test_search_asks_with_a_url(server: str, tmp_path: Path) -> None:
    lay_out(tmp_path, {"p/a.jpg": PICTURE, "p/b.jpg": jpeg(9, (32, 48))})
    checkpoint = tiny.save_blip(tmp_path / "blip")
    store = ["--store", str(tmp_path / "s")]
    encoded = CliRunner().invoke(
        main, ["encode", str(tmp_path / "p"), *store, "--model", str(checkpoint)]
    )
    assert encoded.exit_code == 0, encoded.stderr

    found = CliRunner().invoke(
        main, ["search", "--image", f"{server}/picture.jpg", *store, "--json", "-k", "1"]
    )

    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["item_id"] == "a.jpg"
