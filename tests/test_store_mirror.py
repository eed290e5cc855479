"""Stores behind addresses: the same as on this machine, whole at every moment, one writer."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.errors import StoreDamaged, StoreError, StoreNotFound
from retrieval_engine.records import Modality
from retrieval_engine.store import (
    Store,
    StoreWriter,
    compact_store,
    forget_source,
    merge_stores,
    open_store,
    repair_store,
)
from retrieval_engine.testing.store_data import FEATURES, SOURCE, SPEC, add, pictures, write
from tests.store_crash import finish

URL = "memory://bucket/store"
ITEMS = pictures(9).items


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLRE_URLS", "")
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str = "other") -> None:
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / name))


def everything(store: Store) -> tuple[object, ...]:
    """All that a store says of its items, and their features."""
    gallery = store.gallery()
    features = {
        (str(m), name): store.read(m, name, np.arange(store.count(m))).tobytes()
        for m in Modality
        for name in sorted(store.features(m))
    }
    return store.items().to_pylist(), list(gallery.ids), features, store.failures()


def written(url: str | Path, **how: Any) -> Store:
    write(Path(url), ITEMS, part_items=4, **how)
    return open_store(url)


def test_it_equals_a_local_store_on_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = written(tmp_path / "store"), written(URL)
    assert everything(there) == everything(here)
    other_machine(tmp_path, monkeypatch)
    read = open_store(URL)
    assert everything(read) == everything(here)
    assert read.manifest.files() == there.manifest.files()
    assert read.verify() == []


def test_only_what_is_read_is_fetched_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    written(URL)
    other_machine(tmp_path, monkeypatch)
    fetched: list[str] = []
    get_file = type(memory).get_file

    def noted(self: object, path: str, to: str, **how: Any) -> None:
        fetched.append(path.rpartition("/")[2])
        get_file(self, path, to, **how)

    monkeypatch.setattr(type(memory), "get_file", noted)
    open_store(URL).items()
    assert fetched == [f"items-0000{n}.parquet" for n in range(3)]
    everything(open_store(URL))
    everything(open_store(URL))
    assert len(fetched) == len(set(fetched)) == 8


def test_a_second_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StoreWriter.open(URL, spec=SPEC, features=FEATURES) as writer:
        with pytest.raises(StoreError, match=r"memory://bucket/store is being written by process"):
            StoreWriter.reopen(URL)
        other_machine(tmp_path, monkeypatch)
        with pytest.raises(StoreError, match=r"is being written by process \d+ on .*, \d s ago"):
            StoreWriter.open(URL, spec=SPEC, features=FEATURES)
        add(writer, ITEMS)
    with StoreWriter.reopen(URL) as again:
        assert len(again.manifest.parts) == 1


def test_a_killed_writer_is_followed_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    class Killed(BaseException):
        pass

    put_file, sent = type(memory).put_file, 0

    def dying(self: object, path: str, to: str, **how: Any) -> None:
        nonlocal sent
        sent += 1
        put_file(self, path, to, **how)
        if sent == 5:
            raise Killed

    monkeypatch.setattr(type(memory), "put_file", dying)
    monkeypatch.setattr("retrieval_engine.store.send.drop", lambda path, name: None)
    with pytest.raises(Killed):
        finish(Path(URL))
    assert memory.exists(f"{URL}/store.lock")  # as after kill -9
    assert everything(open_store(URL))[1] == [f"{n}.jpg" for n in range(4)]
    monkeypatch.undo()
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "cache"))

    assert finish(Path(URL)) == [f"{n}.jpg" for n in range(4, 12)]
    finish(tmp_path / "local")
    assert everything(open_store(URL))[::3] == everything(open_store(tmp_path / "local"))[::3]
    listed = {entry.name for entry in open_store(URL).manifest.files()}
    assert {Path(path).name for path in memory.ls(f"{URL}/shards", detail=False)} == listed


def test_a_lock_that_is_not_renewed_gives_way_and_its_writer_commits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    with StoreWriter.open(URL, spec=SPEC, features=FEATURES) as late:
        add(late, ITEMS[:4])
        said = json.loads(memory.cat_file(f"{URL}/store.lock"))
        memory.pipe_file(
            f"{URL}/store.lock", json.dumps({**said, "renewed": time.time() - 601}).encode()
        )
        monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "other"))
        with StoreWriter.open(URL, spec=SPEC, features=FEATURES) as writer:
            add(writer, ITEMS[4:])
            with pytest.raises(StoreError, match="another writer; nothing of it was overwritten"):
                add(late, ITEMS[4:6])
        assert memory.exists(f"{URL}/store.json")
    assert len(open_store(URL).items()) == len(ITEMS)
    assert open_store(URL).verify() == []


@pytest.mark.parametrize("failing", ["put_file", "pipe_file"])
def test_what_cannot_be_sent_leaves_the_store_as_it_was(
    failing: str, monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    before = everything(written(URL))

    def refusing(self: object, *given: Any, **how: Any) -> None:
        if "lock" not in str(given[0]):
            raise TimeoutError

    with StoreWriter.reopen(URL) as writer:
        monkeypatch.setattr(type(memory), failing, refusing)
        with pytest.raises(StoreError, match=r"cannot write memory://.*: no answer in time"):
            writer.remove(SOURCE, ["0.jpg"])
        monkeypatch.undo()
    assert everything(open_store(URL)) == before


def test_half_a_shard_is_not_taken(monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
    put_file = type(memory).put_file

    def half(self: Any, path: str, to: str, **how: Any) -> None:
        put_file(self, path, to, **how)
        self.store[to].truncate(100)

    with StoreWriter.open(URL, spec=SPEC, features=FEATURES) as writer:
        monkeypatch.setattr(type(memory), "put_file", half)
        with pytest.raises(StoreError, match=r"has 100 bytes, [\d,]+ were sent"):
            add(writer, ITEMS)
        monkeypatch.undo()


def test_damage_there_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    store = written(URL)
    other_machine(tmp_path, monkeypatch)
    name = store.manifest.files(Modality.IMAGES)[0].name
    data = bytearray(memory.cat_file(f"{URL}/shards/{name}"))
    data[-1] ^= 1
    memory.pipe_file(f"{URL}/shards/{name}", bytes(data))
    (problem,) = open_store(URL).verify()
    assert name in problem
    with pytest.raises(StoreDamaged, match="has sha256"):
        everything(open_store(URL))
    memory.rm_file(f"{URL}/shards/{name}")
    with pytest.raises(StoreDamaged, match=f"{name} is missing"):
        everything(open_store(URL))
    assert len(repair_store(URL).problems) == 1
    assert open_store(URL).verify() == []


def test_a_store_made_anew_is_not_mistaken_for_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    everything(written(URL))
    other_machine(tmp_path, monkeypatch)
    memory.rm(URL, recursive=True)
    with pytest.raises(StoreNotFound, match="no store at memory://bucket/store"):
        open_store(URL)
    with StoreWriter.open(URL, spec=SPEC, features=FEATURES) as writer:
        add(writer, ITEMS, version=1)
    new = everything(open_store(URL))
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "cache"))
    assert everything(open_store(URL)) == new


def test_a_strangers_store_cannot_name_an_address(tmp_path: Path, memory: Any) -> None:
    written(URL)
    (strange,) = (tmp_path / "cache" / "stores").iterdir()
    planted = tmp_path / "stores" / strange.name
    shutil.copytree(strange, planted)
    (next((planted / "shards").glob("images-*"))).unlink()
    memory.store.clear()
    with pytest.raises(StoreDamaged, match="is missing"):
        everything(open_store(planted))


def test_other_writers_work_there_too(tmp_path: Path, memory: Any) -> None:
    written(tmp_path / "a")
    merge_stores([tmp_path / "a"], URL)
    merge_stores([URL], tmp_path / "b")
    assert everything(open_store(tmp_path / "b")) == everything(open_store(URL))
    assert compact_store(URL).rows_after == compact_store(tmp_path / "b").rows_after
    assert forget_source(URL, SOURCE) == len(ITEMS)
    assert len(open_store(URL).items()) == 0
    listed = {entry.name for entry in open_store(URL).manifest.files()}
    assert {Path(path).name for path in memory.ls(f"{URL}/shards", detail=False)} == listed


def test_commands_name_the_address(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there"
    run = CliRunner().invoke
    done = run(main, ["encode", "scenes:12", "--store", url])
    assert f"store     {url} in" in done.stdout, done.stderr
    assert f"{url}: 3 files" in run(main, ["store", "verify", "--store", url]).stdout
    found = run(main, ["search", "a dog", "--store", url, "--json", "-k", "3"])
    assert len(found.stdout.splitlines()) == 3, found.stderr
    index = ["--index", str(tmp_path / "index")]
    assert run(main, ["index", "--store", url, *index]).exit_code == 0
    assert run(main, ["search", "a dog", "--store", url, *index]).exit_code == 0
    missing = run(main, ["store", "info", "--store", f"file://{tmp_path}/nowhere"])
    assert f"no store at file://{tmp_path}/nowhere" in missing.stderr
