"""Sources and stores on a real S3 server that times out, answers 503 and cuts answers off."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.encoding import EncodeOptions, encode
from retrieval_engine.errors import StoreError, StoreNotFound, UrlFailure
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.store import Store, StoreWriter, open_store
from retrieval_engine.testing.images import jpeg
from retrieval_engine.testing.store_data import FEATURES, SPEC, add, pictures
from retrieval_engine.urls import systems
from tests.remote_files import items_of, put, write_data
from tests.s3_server import BUCKET, Served, environment, s3_server
from tests.store_crash import finish
from tests.test_store_mirror import everything
from tests.test_urls import SPECS

pytestmark = pytest.mark.service
DATA, STORE = f"s3://{BUCKET}/data", f"s3://{BUCKET}/store"
SMALL_PARTS = EncodeOptions(part_rows=4, batch_size=4)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLRE_URLS", "")
    monkeypatch.setattr(systems, "_SILENCE_S", 1)
    with s3_server() as served:
        for name, value in environment(served).items():
            monkeypatch.setenv(name, value)
        systems._file_system.cache_clear()
        system = systems.file_system("s3")
        monkeypatch.setattr(type(system), "retries", 3)
        system.mkdir(BUCKET)
        yield served
        served.fault = lambda method, path: ""
        system.rm(BUCKET, recursive=True)
    systems._file_system.cache_clear()


@pytest.fixture(scope="module")
def tiny() -> Encoder:
    return open_encoder("vlre-tiny", device="cpu")


def now_and_then(seed: int, *faults: str, every: int = 6) -> Any:
    """A fault of these at every sixth request or so, never more than twice in a row."""
    draw, row = random.Random(seed), [0]

    def fault(method: str, path: str) -> str:
        row[0] = row[0] + 1 if row[0] < 2 and draw.randrange(every) == 0 else 0
        return draw.choice(faults) if row[0] else ""

    return fault


def content(store: Store) -> tuple[object, ...]:
    """What a store holds, but for its items' times, which S3 rounds."""
    items, ids, features, failures = everything(store)
    return ids, features, failures, [dict(item, mtime_ns=0) for item in items]  # type: ignore[attr-defined]


@pytest.mark.parametrize("spec", SPECS[::2])
def test_every_kind_of_source_gives_the_same_items_through_faults(
    spec: str, tmp_path: Path, s3: Served
) -> None:
    put(write_data(tmp_path), DATA)
    s3.fault = now_and_then(3, "503", "half")
    here, there = (open_source(spec.format(place, place)) for place in (tmp_path, DATA))
    assert items_of(there) == items_of(here) != []


def test_an_s3_store_equals_a_local_one_whatever_fails(
    tmp_path: Path, s3: Served, tiny: Encoder
) -> None:
    here = tmp_path / "store"
    encode("scenes:12?seed=3", here, encoder=tiny, options=SMALL_PARTS)
    s3.fault = now_and_then(5, "503", "half", "lost", "slow", every=8)
    for _ in range(20):  # the same command, until it comes to its end
        with suppress(StoreError, UrlFailure):
            report = encode("scenes:12?seed=3", STORE, encoder=tiny, options=SMALL_PARTS)
            assert report.failures == []
            break
    s3.fault = lambda method, path: ""
    assert content(open_store(STORE)) == content(open_store(here))
    assert open_store(STORE).verify() == []


def test_killed_by_signal_9_the_same_command_goes_on(tmp_path: Path, s3: Served) -> None:
    command = ["encode", "scenes:12?seed=3", "--store", STORE, "--shard-rows", "4"]
    child = subprocess.Popen([sys.executable, str(Path(__file__).parents[1] / "cli.py"), *command])
    while not s3.count("PUT", "images-00001.h5") and child.poll() is None:
        time.sleep(0.01)
    child.kill()
    child.wait()
    kept = len(open_store(STORE).items())
    done = CliRunner().invoke(main, [*command, "--json"])
    report = json.loads(done.stdout)
    assert (report["images"]["encoded"], report["images"]["reused"]) == (12 - kept, kept)
    assert 4 <= kept < 12
    CliRunner().invoke(main, [*command[:2], "--store", str(tmp_path / "s"), *command[4:]])
    assert content(open_store(STORE)) == content(open_store(tmp_path / "s"))


def test_every_request_that_fails_for_good_leaves_a_whole_store(
    tmp_path: Path, s3: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(systems.file_system("s3")), "retries", 1)
    finish(tmp_path / "local")
    whole = everything(open_store(tmp_path / "local"))
    last = 0
    for number in range(5, 200, 9):
        s3.requests.clear()
        failing = number

        def fault(method: str, path: str, failing: int = failing) -> str:
            return "403" if method in {"PUT", "DELETE"} and s3.count(method) >= failing else ""

        s3.fault = fault
        monkeypatch.setenv("VLRE_CACHE", str(tmp_path / f"cache-{number}"))
        try:
            finish(Path(STORE))
            ended = True
        except StoreError:
            ended = False
        s3.fault = lambda method, path: ""
        found = 0
        with suppress(StoreNotFound):
            store = open_store(STORE)
            assert store.verify() == []
            found = len(store.items())
        assert found >= last
        last = found
        if ended:
            break
        _forget_lock()
    finish(Path(STORE))
    assert everything(open_store(STORE))[1] == whole[1]
    assert everything(open_store(STORE))[3] == whole[3]


def _forget_lock() -> None:
    """As ten minutes would do."""
    system = systems.file_system("s3")
    if system.exists(f"{STORE}/store.lock"):
        said = json.loads(system.cat_file(f"{STORE}/store.lock"))
        said["renewed"] = time.time() - 601
        system.pipe_file(f"{STORE}/store.lock", json.dumps(said).encode())


def test_of_two_writers_the_second_is_refused_by_the_server(
    tmp_path: Path, s3: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = pictures(4).items
    with StoreWriter.open(STORE, spec=SPEC, features=FEATURES) as writer:
        monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "other"))
        with pytest.raises(StoreError, match="is being written by process"):
            StoreWriter.open(STORE, spec=SPEC, features=FEATURES)
        add(writer, items)
        system = systems.file_system("s3")
        manifest = system.cat_file(f"{STORE}/manifest.json")
        system.pipe_file(f"{STORE}/manifest.json", manifest + b" ")  # another writer's
        with pytest.raises(StoreError, match="taken over by another writer"):
            add(writer, items)
        assert system.cat_file(f"{STORE}/manifest.json") == manifest + b" "


def test_one_object_costs_its_row_and_a_listing_the_run(
    tmp_path: Path, s3: Served, tiny: Encoder
) -> None:
    put(write_data(tmp_path), DATA)
    s3.fault = lambda method, path: "403" if path.endswith("train/1.jpg") else ""
    report = encode(f"{DATA}/pets", tmp_path / "store", encoder=tiny)
    assert [f.item_id for f in report.failures] == ["train/1.jpg"]
    assert "access is refused" in report.failures[0].reason

    s3.fault = lambda method, path: "503" if path == f"/{BUCKET}" else ""
    with pytest.raises(UrlFailure, match=f"cannot read {DATA}/pets: as the test asked"):
        encode(f"{DATA}/pets", tmp_path / "store", encoder=tiny)
    assert len(open_store(tmp_path / "store").items()) == 3

    s3.fault = lambda method, path: ""
    s3.requests.clear()
    again = encode(f"{DATA}/pets", tmp_path / "store", encoder=tiny)
    assert (again.images.encoded, again.images.reused, again.failures) == (1, 3, [])
    assert s3.count("GET", ".jpg") == 1  # an unchanged object is not read again


def test_what_is_wrong_is_said_in_one_line(s3: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    put_one = systems.file_system("s3")
    put_one.pipe_file(f"{DATA}/a.jpg", jpeg(1))
    open_source(DATA)
    with pytest.raises(UrlFailure, match=r"gone.jpg: there is nothing$"):
        read_bytes(f"{DATA}/gone.jpg")
    s3.fault = lambda method, path: "slow"
    monkeypatch.setattr(type(put_one), "retries", 1)
    with pytest.raises(UrlFailure, match="no answer in time"):
        read_bytes(f"{DATA}/a.jpg")
    s3.fault = lambda method, path: ""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    systems._file_system.cache_clear()
    with pytest.raises(UrlFailure, match="no credentials were found") as raised:
        read_bytes(f"{DATA}/a.jpg")
    assert "AWS_PROFILE" in raised.value.hint


def test_many_are_read_at_once(tmp_path: Path, s3: Served, tiny: Encoder) -> None:
    system = systems.file_system("s3")
    for number in range(48):
        system.pipe_file(f"{DATA}/{number:02}.jpg", jpeg(number))
    s3.fault = lambda method, path: _wait(0.1) if path.endswith(".jpg") else ""
    options = EncodeOptions(worker_kind="threads")
    begun = time.perf_counter()
    encode(DATA, tmp_path / "store", encoder=tiny, options=options)
    assert time.perf_counter() - begun < 48 * 0.1  # what one after the other would take alone


def _wait(seconds: float) -> str:
    time.sleep(seconds)
    return ""
