"""Sources behind addresses: the same items as on this machine, and nothing that nobody named."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval_engine.encoding import EncodeOptions, encode
from retrieval_engine.errors import MissingExtra, SourceError, UrlFailure, UsageError
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.records import Item
from retrieval_engine.sources import open_source, read_bytes, read_item
from retrieval_engine.sources.asked import read_asked
from retrieval_engine.store import open_store
from retrieval_engine.testing.images import jpeg
from retrieval_engine.urls import as_url, only_named
from tests.loopback import serving
from tests.remote_files import items_of, put, write_data

SPECS = (
    "folder:{}/pets",
    "folder:{}/pets?glob=*.jpg&split_from=folder",
    "captions:{}/pairs.csv?images={}/pets/train",
    "captions:{}/pets/train/names.csv",
    "parquet:{}/tables",
    "parquet:{}/tables/*.parquet?caption=none&id=row",
    "webdataset:{}/shard-{{0..1}}.tar",
    "webdataset:{}/*.tar?id=shard",
)


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLRE_URLS", "")


@pytest.fixture
def memory() -> Iterator[str]:
    system = fsspec.filesystem("memory")
    yield "memory://bucket/data"
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("spec", SPECS)
def test_a_source_behind_an_address_gives_the_same_items(
    spec: str, tmp_path: Path, memory: str
) -> None:
    put(write_data(tmp_path), memory)
    here, there = (open_source(spec.format(place, place)) for place in (tmp_path, memory))

    assert items_of(there) == items_of(here) != []
    assert there.name.split(memory)[1:] == here.name.split(str(tmp_path))[1:]
    assert there.notes == [note.replace(str(tmp_path), memory) for note in here.notes]
    assert all(memory in item.uri for item in there.items())


def test_a_file_address_is_one_too(tmp_path: Path) -> None:
    write_data(tmp_path)
    items = list(open_source(f"folder:file://{tmp_path}/pets").items())
    assert items_of(open_source(f"file://{tmp_path}/pets")) == items_of(
        open_source(f"folder:{tmp_path}/pets")
    )
    assert items[0].size_bytes == os.path.getsize(tmp_path / "pets" / items[0].id)


@pytest.mark.parametrize(
    "uri",
    [
        "memory://bucket/other/x.jpg",
        "memory://bucket/data2/x.jpg",
        "memory://bucket/data/../other/x.jpg",
        "memory://bucket/data/%2e%2e/other/x.jpg",
        "webdataset:memory://bucket/other.tar#0,10",
        "parquet:memory://bucket/other.parquet#0,image",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
    ],
)
def test_what_nobody_named_is_not_opened(uri: str, tmp_path: Path, memory: str) -> None:
    put(write_data(tmp_path), memory)
    list(open_source(f"folder:{memory}").items())

    with pytest.raises(UrlFailure, match="nobody named it"):
        read_bytes(uri)
    with pytest.raises(SourceError):
        read_asked("s3://bucket/x.jpg")


def test_an_annotation_cannot_lead_out_of_the_images_named(tmp_path: Path, memory: str) -> None:
    put(write_data(tmp_path), memory)
    names = ["../secret.jpg", "/bucket/data/secret.jpg", "memory://bucket/data/secret.jpg"]
    system = fsspec.filesystem("memory")
    system.pipe_file(f"{memory}/secret.jpg", jpeg(1))
    lines = "".join(f"{name},a secret\n" for name in [*names, "0.jpg"])
    system.pipe_file(f"{memory}/pets/train/captions.csv", b"image,caption\n" + lines.encode())

    source = open_source(f"captions:{memory}/pets/train/captions.csv?allow_missing")
    assert [item.id for item in source.items()] == ["0.jpg"]
    assert source.missing == tuple(names)  # type: ignore[attr-defined]


def test_within_only_named_a_strangers_source_is_not_opened(memory: str, tmp_path: Path) -> None:
    put(write_data(tmp_path), memory)
    with only_named(), pytest.raises(UrlFailure, match="nobody named it"):
        open_source(f"folder:{memory}/pets")
    assert not os.environ["VLRE_URLS"]


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("folder:s3://key:word@bucket/x", UsageError, "password"),
        ("folder:memory://x::s3://bucket/x", UsageError, "::"),
        ("folder:nothing://bucket/x", UsageError, "no scheme that fsspec knows"),
        ("folder:memory://bucket/nothing", SourceError, "does not exist"),
        ("webdataset:memory://bucket/{a,b}.tar", SourceError, "does not exist"),
        ("parquet:memory://bucket/*.parquet", SourceError, "no Parquet file matches"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    spec: str, error: type[Exception], said: str, memory: str
) -> None:
    with pytest.raises(error, match=said) as raised:
        open_source(spec)
    assert "word@" not in str(raised.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from retrieval_engine.urls import systems

    systems._file_system.cache_clear()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match="s3fs is not installed") as raised:
        open_source("folder:s3://bucket/x")
    assert "vlre[s3]" in raised.value.hint


@pytest.fixture(scope="module")
def tiny() -> Encoder:
    return open_encoder("vlre-tiny", device="cpu")


def test_an_unchanged_object_is_not_read_again(
    tmp_path: Path, memory: str, tiny: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(write_data(tmp_path), memory)
    first = encode(f"folder:{memory}/pets", tmp_path / "store", encoder=tiny)
    assert first.images.encoded == 4

    read: list[str] = []
    system = fsspec.filesystem("memory")
    cat_file = type(system).cat_file

    def noted(self: object, path: str, **how: int) -> bytes:
        read.append(path)
        return bytes(cat_file(self, path, **how))

    monkeypatch.setattr(type(system), "cat_file", noted)
    system.pipe_file(f"{memory}/pets/train/1.jpg", jpeg(77))
    again = encode(f"folder:{memory}/pets", tmp_path / "store", encoder=tiny)
    assert (again.images.encoded, again.images.reused) == (1, 3)
    assert [path for path in read if path.endswith(".jpg")] == ["/bucket/data/pets/train/1.jpg"]


def test_one_that_fails_costs_its_row_and_a_failed_listing_none(
    tmp_path: Path, memory: str, tiny: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(write_data(tmp_path), memory)
    system = type(fsspec.filesystem("memory"))
    cat_file, ls = system.cat_file, system.ls

    def refusing(self: object, path: str, **how: int) -> bytes:
        if path.endswith("0.jpg"):
            raise PermissionError("403")
        return bytes(cat_file(self, path, **how))

    monkeypatch.setattr(system, "cat_file", refusing)
    report = encode(f"folder:{memory}/pets", tmp_path / "store", encoder=tiny)
    assert [failure.item_id for failure in report.failures] == ["train/0.jpg", "val/0.jpg"]
    assert "access is refused (403)" in report.failures[0].reason

    def broken(self: object, path: str, **how: bool) -> object:
        if path.endswith("val"):
            raise TimeoutError
        return ls(self, path, **how)

    monkeypatch.setattr(system, "ls", broken)
    with pytest.raises(UrlFailure, match=r"cannot read memory://.*/val: no answer in time"):
        encode(f"folder:{memory}/pets", tmp_path / "store", encoder=tiny)
    assert len(open_store(tmp_path / "store").items()) == 2


def test_another_process_reads_what_this_one_named(tmp_path: Path, tiny: Encoder) -> None:
    write_data(tmp_path)
    options = EncodeOptions(worker_kind="processes", workers=1)
    address = f"file://{tmp_path}/pets"
    report = encode(f"folder:{address}", tmp_path / "store", encoder=tiny, options=options)
    assert (report.images.encoded, report.failures) == (4, [])

    program = f"from retrieval_engine.sources import read_bytes; read_bytes('{address}/val/0.jpg')"
    without = {name: value for name, value in os.environ.items() if name != "VLRE_URLS"}
    stranger = subprocess.run(
        [sys.executable, "-c", program], env=without, capture_output=True, text=True, check=False
    )
    assert "nobody named it" in stranger.stderr


def test_damaged_tables_and_tars_are_told(tmp_path: Path, memory: str) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file(f"{memory}/a.parquet", b"PAR1 no more")
    system.pipe_file(f"{memory}/a.tar", b"no tar" * 400)
    with pytest.raises(SourceError, match="no whole Parquet file"):
        open_source(f"parquet:{memory}/a.parquet")
    with pytest.raises(SourceError, match="no plain tar"):
        list(open_source(f"webdataset:{memory}/a.tar").items())


def test_a_shard_that_changed_is_copied_anew(tmp_path: Path, memory: str) -> None:
    put(write_data(tmp_path), memory)
    spec = f"webdataset:{memory}/shard-0.tar"
    before = [read_item(item) for item in open_source(spec).items()]
    system = fsspec.filesystem("memory")
    system.pipe_file(f"{memory}/shard-0.tar", (tmp_path / "shard-1.tar").read_bytes())
    after = list(open_source(spec).items())
    assert [item.id for item in after] == ["c", "d"]
    assert {read_item(item) for item in after}.isdisjoint(before)


def test_an_item_without_a_version_keeps_its_state() -> None:
    from retrieval_engine.store.item_rows import item_state

    item = Item(id="a", uri="/a")
    assert item_state(item, "s") != item_state(Item(id="a", uri="/a", version="1"), "s")
    assert item_state(item, "s").hex() == "41c04e18628ef40075fedf53a3681820"


def test_paths_that_lost_a_stroke_are_addresses_still() -> None:
    assert as_url(Path("s3://bucket/a")) == as_url("s3://bucket/a") == "s3://bucket/a"
    assert as_url(Path("file:///tmp/a")) == "file:///tmp/a"
    assert as_url("/tmp/a") == as_url("a:b/c") == as_url("C:/x") == ""


def test_pictures_of_a_table_are_read_in_any_order(tmp_path: Path, memory: str) -> None:
    rows = [jpeg(seed) for seed in range(40)]
    table = pa.table({"id": [str(n) for n in range(40)], "image": rows, "caption": ["a"] * 40})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=8)
    put(tmp_path, memory)
    items = list(open_source(f"parquet:{memory}/a.parquet").items())
    assert [read_item(items[n]) for n in (39, 0, 17)] == [rows[n] for n in (39, 0, 17)]


class _Redirecting(SimpleHTTPRequestHandler):
    """Files of a folder; what is called `away` is elsewhere, and `secret` is not for everybody."""

    def do_GET(self) -> None:
        if "away" in self.path:
            self.send_response(302)
            self.send_header("Location", "/pets/val/0.jpg")
            self.end_headers()
        elif "secret" in self.path:
            self.send_error(403)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    handler = partial(_Redirecting, directory=str(tmp_path))
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as address:
        yield address


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[2], SPECS[6]])
def test_a_web_server_is_a_source_too(spec: str, tmp_path: Path, web: str) -> None:
    write_data(tmp_path)
    here, there = (open_source(spec.format(place, place)) for place in (tmp_path, web))
    assert items_of(there) == items_of(here) != []
    items = list(there.items())
    assert items == list(open_source(spec.format(web, web)).items())  # size and time are known
    assert all(item.mtime_ns > 0 for item in items)


def test_redirections_are_not_followed(tmp_path: Path, web: str) -> None:
    write_data(tmp_path)
    (tmp_path / "pets" / "val" / "away.jpg").write_bytes(jpeg(9))
    open_source(f"folder:{web}/pets/val")
    with pytest.raises(UrlFailure, match="redirected to another address, which is not followed"):
        read_bytes(f"{web}/pets/val/away.jpg")
    with pytest.raises(UrlFailure, match=r"secret.jpg: access is refused"):
        read_bytes(f"{web}/pets/val/secret.jpg")
    with pytest.raises(UrlFailure, match=r"gone.jpg: there is nothing"):
        read_bytes(f"{web}/pets/val/gone.jpg")
    with pytest.raises(UrlFailure, match="nobody named it"):
        read_bytes(f"{web}/pets/train/0.jpg")
