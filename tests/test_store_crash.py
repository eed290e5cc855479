"""Killed writers, second writers and damaged files."""

import fcntl
import os
import re
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from retrieval_engine.errors import StoreChanged, StoreDamaged, StoreError
from retrieval_engine.records import Modality
from retrieval_engine.store import Store, StoreWriter, open_store, repair_store
from retrieval_engine.testing.store_data import (
    FEATURES,
    IMAGE_FEATURES,
    SOURCE,
    SPEC,
    add,
    pictures,
    rows,
    write,
)
from tests.children import in_child, limit_files
from tests.store_crash import FAILURE, ITEMS, PART_ITEMS, finish, kill


def _same(store: Store, other: Store) -> None:
    """Same items in the same order, same rows, same vectors, same ledger."""
    assert store.items().equals(other.items())
    assert store.failures() == other.failures()
    galleries = store.gallery(), other.gallery()
    for gallery in galleries:
        assert gallery.left_out == 0
        assert (gallery.caption_rows >= 0).all()
    for modality in Modality:
        assert store.count(modality) == other.count(modality)
        assert store.features(modality) == other.features(modality)
        for name in store.features(modality):
            ours, theirs = (
                gallery.images(name) if modality == Modality.IMAGES else gallery.captions(name)
                for gallery in galleries
            )
            np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store") / "whole"
    finish(path)
    return open_store(path)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A store with one part, which writers then go on with."""
    path = tmp_path / "begun"
    write(path, pictures(PART_ITEMS).items)
    return path


def _survived(killed: dict[str, Any], uninterrupted: Store) -> int:
    """Check a killed writer's store and bring it to its end; how many parts it had."""
    path = Path(killed["path"])
    store = open_store(path)
    assert store.verify() == []
    parts = len(store.manifest.parts)
    # All it said it had committed is there; it may have died before it could say so.
    assert parts - max(killed["committed"], 1) in (0, 1)
    items = pictures(PART_ITEMS * parts)
    assert store.gallery().ids == [item.id for item in items.items]
    expected = rows(IMAGE_FEATURES, items.keys)["itc"]
    np.testing.assert_array_equal(store.gallery().images("itc", np.float16), expected)
    # Nothing is done twice but what was never committed.
    assert finish(path) == [f"{i}.jpg" for i in range(PART_ITEMS * parts, ITEMS)]
    _same(open_store(path), uninterrupted)
    listed = {entry.name for entry in open_store(path).manifest.files()}
    assert {file.name for file in (path / "shards").iterdir()} == listed
    assert not list(path.glob("*.partial"))
    return parts


def test_killed_before_any_change_of_the_directory(
    tmp_path: Path, begun: Path, uninterrupted: Store
) -> None:
    """Every rename of every file of every part, in turn: there is no bad moment."""
    runs = kill("moments", begun, tmp_path, 1000)
    # 2 parts of 3 files and a manifest each, and the ledger at the end.
    assert [run["ended"] for run in runs] == [-9] * (2 * 4 + 1) + [0]
    parts = [_survived(run, uninterrupted) for run in runs[:-1]]
    assert parts == [1] * 4 + [2] * 4 + [3]
    _same(open_store(runs[-1]["path"]), uninterrupted)


def test_killed_at_random_moments(tmp_path: Path, begun: Path, uninterrupted: Store) -> None:
    runs = kill("random", begun, tmp_path, 4)
    _same(open_store(runs[0]["path"]), uninterrupted)
    assert any(run["ended"] == -9 for run in runs)
    for run in runs[1:]:
        _survived(run, uninterrupted)


def test_killed_while_the_store_was_made(tmp_path: Path, uninterrupted: Store) -> None:
    (tmp_path / "empty").mkdir()
    for run in kill("moments", tmp_path / "empty", tmp_path, 4):
        path = Path(run["path"])
        if not (path / "store.json").exists():  # the manifest is written first
            assert not (path / "shards").exists() or not list((path / "shards").iterdir())
        finish(path)
        _same(open_store(path), uninterrupted)


# --- one writer ---


def test_a_second_writer_is_told_who_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        with pytest.raises(StoreError, match=f"is being written by process {os.getpid()} on"):
            StoreWriter.open(path, spec=SPEC, features=FEATURES)
        with pytest.raises(StoreError, match="is being written"):
            repair_store(path)
        add(writer, pictures(3).items)
        assert len(open_store(path).items()) == 3
    with StoreWriter.open(path, spec=SPEC, features=FEATURES):
        pass


def test_the_lock_of_a_dead_process_is_no_obstacle(begun: Path) -> None:
    (begun / "store.lock").write_text("process 1 on elsewhere\n")
    with StoreWriter.open(begun, spec=SPEC, features=FEATURES):
        assert f"process {os.getpid()}" in (begun / "store.lock").read_text()


def test_a_forked_worker_does_not_keep_the_lock(begun: Path) -> None:
    release, hold = os.pipe()
    with StoreWriter.open(begun, spec=SPEC, features=FEATURES):
        child = os.fork()
        if not child:
            os.close(hold)
            os.read(release, 1)  # until the parent closes its end
            os._exit(0)
    try:
        with (begun / "store.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(hold)
        os.close(release)
        os.waitpid(child, 0)


def test_leaving_with_an_error_forgets_the_open_part(begun: Path) -> None:
    keys = pictures(3, start=50).keys

    def work() -> None:
        images = {Modality.IMAGES: IMAGE_FEATURES}
        with StoreWriter.open(begun, spec=SPEC, features=images) as writer:
            writer.part().add(Modality.IMAGES, keys, rows(IMAGE_FEATURES, keys))
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert len(list((begun / "shards").iterdir())) == 3
    with StoreWriter.open(begun, spec=SPEC, features=FEATURES) as writer:
        assert len(writer.keys(Modality.IMAGES)) == PART_ITEMS


# --- damage ---


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def _dataset_bytes(path: Path, name: str) -> int:
    """A position in the file where values of a dataset lie."""
    with h5py.File(path) as file:
        return int(file[name].id.get_chunk_info(0).byte_offset) + 20


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "s"
    write(path, pictures(12).items, part_items=6)
    return path


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "empty"])
def test_a_damaged_shard_is_never_read_as_if_it_were_whole(damaged: Path, harm: str) -> None:
    shard = damaged / "shards" / "images-00001.h5"
    _harm(shard, harm)
    store = open_store(damaged)
    with pytest.raises(StoreDamaged, match=r"images-00001\.h5 .*(damaged|missing)") as caught:
        store.gallery().images("itc")
    assert "`repair_store()`" in caught.value.hint
    problems = store.verify()
    assert len(problems) == 1
    assert "images-00001.h5" in problems[0]
    repaired = repair_store(damaged)
    assert len(repaired.problems) == 1
    assert open_store(damaged).verify() == []
    assert open_store(damaged).gallery().left_out == 6
    again = pictures(12).items
    with StoreWriter.open(damaged, spec=SPEC, features=FEATURES) as writer:
        lost = [item for item in again if not writer.unchanged(item, SOURCE)]
        assert lost == list(again[6:])
        assert writer.present(Modality.CAPTIONS, [c.key for i in lost for c in i.captions]).all()


def _harm(file: Path, harm: str) -> None:
    if harm == "flip":
        _flip(file, _dataset_bytes(file, "itc"))
    elif harm == "truncate":
        os.truncate(file, file.stat().st_size // 2)
    elif harm == "empty":
        os.truncate(file, 0)
    else:
        file.unlink()


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_items_table_is_found_and_made_again(damaged: Path, harm: str) -> None:
    table = damaged / "shards" / "items-00000.parquet"
    if harm == "flip":
        data = table.read_bytes()
        _flip(table, data.index(b"PAR1", 0) + 60)
    else:
        _harm(table, harm)
    with pytest.raises(StoreDamaged, match=r"items-00000\.parquet"):
        open_store(damaged).items()
    repair_store(damaged)
    content = pictures(12)
    with StoreWriter.open(damaged, spec=SPEC, features=FEATURES) as writer:
        lost = [item for item in content.items if not writer.unchanged(item, SOURCE)]
        assert lost == list(content.items[:6])
        assert writer.present(Modality.IMAGES, content.keys).all()  # nothing is encoded again
    assert open_store(damaged).gallery().ids == [item.id for item in content.items[6:]]


def test_key_columns_are_checked_too(damaged: Path) -> None:
    shard = damaged / "shards" / "captions-00000.h5"
    _flip(shard, _dataset_bytes(shard, "key"))
    with pytest.raises(StoreDamaged, match=r"captions-00000\.h5 is damaged"):
        open_store(damaged).rows(Modality.CAPTIONS, ["0" * 64])


@pytest.mark.parametrize("name", ["store.json", "manifest.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format_version": 1}', '{"format_version": 1, "parts": 3}']
)
def test_json_that_cannot_be_understood(damaged: Path, name: str, text: str) -> None:
    (damaged / name).write_text(text)
    with pytest.raises(StoreDamaged, match=f"{name} cannot be understood") as caught:
        open_store(damaged)
    assert "`EncodeOptions(overwrite=True)`" in caught.value.hint
    with pytest.raises(StoreDamaged):
        StoreWriter.open(damaged, spec=SPEC, features=FEATURES)
    with StoreWriter.open(damaged, spec=SPEC, features=FEATURES, overwrite=True) as writer:
        add(writer, pictures(2).items)
        assert writer.manifest.parts[0].number == 2
    assert len(open_store(damaged).gallery()) == 2


def test_a_missing_manifest_or_header_is_not_an_empty_store(damaged: Path) -> None:
    shutil.copytree(damaged, damaged.with_name("headless"))
    (damaged / "manifest.json").unlink()
    with pytest.raises(StoreDamaged, match=r"manifest\.json is missing"):
        open_store(damaged)
    (damaged.with_name("headless") / "store.json").unlink()
    with pytest.raises(StoreDamaged, match=r"store\.json is missing, .* lists 2 parts"):
        StoreWriter.open(damaged.with_name("headless"), spec=SPEC, features=FEATURES)


def test_a_ledger_that_cannot_be_understood(damaged: Path) -> None:
    with StoreWriter.open(damaged, spec=SPEC, features=FEATURES) as writer:
        writer.part().commit([FAILURE])
    file = damaged / "failures.jsonl"
    whole = file.read_text()
    file.write_text(whole.replace("broken.jpg", "brokem.jpg", 1))  # one flipped bit
    with pytest.raises(StoreDamaged, match="checksum of a line differs"):
        open_store(damaged).failures()
    file.write_text(re.sub(r', "checksum": "\w+"', "", whole))  # as stores had it before
    assert open_store(damaged).failures() == [FAILURE]
    file.write_text(whole[:-9])
    with pytest.raises(StoreDamaged, match=r"failures\.jsonl cannot be understood"):
        open_store(damaged).failures()


def test_a_manifest_cannot_point_outside_its_store(damaged: Path) -> None:
    text = (damaged / "manifest.json").read_text()
    text = re.sub(r',\s*"checksum": "\w+"', "", text)  # as stores had it before
    (damaged / "manifest.json").write_text(text.replace("items-00000", "../items-00000"))
    with pytest.raises(StoreDamaged, match="no plain file name"):
        open_store(damaged)
    (damaged / "manifest.json").write_text(text)
    assert len(open_store(damaged).items()) > 0


def test_a_full_disk_loses_nothing(begun: Path) -> None:
    """A file size limit stands for it: the kernel refuses the bytes alike."""

    def write_beyond_it() -> None:
        with StoreWriter.open(begun, spec=SPEC, features=FEATURES) as writer:
            limit_files(50_000)
            with pytest.raises(StoreError, match="cannot write"):
                add(writer, pictures(ITEMS).items[PART_ITEMS:])

    ended = in_child(write_beyond_it)
    assert ended.code == 0, ended.output
    store = open_store(begun)
    assert store.verify() == []
    assert len(store.gallery()) == PART_ITEMS
    assert len(finish(begun)) == ITEMS - PART_ITEMS


# --- readers of a store that is replaced ---


def test_a_reader_of_an_overwritten_store_is_not_told_that_it_is_damaged(tmp_path: Path) -> None:
    path, twenty = tmp_path / "s", pictures(20).items
    write(path, twenty, part_items=5)
    reader = open_store(path)
    assert len(reader.items()) == 20
    with StoreWriter.open(path, spec=SPEC, features=FEATURES, overwrite=True) as writer:
        for look in (reader.items, reader.gallery):
            with pytest.raises(StoreChanged, match="was overwritten or compacted while"):
                look()
        assert len(open_store(path).items()) == 0
        add(writer, twenty[:7])
    assert len(open_store(path).gallery()) == 7
    (path / "shards" / "items-00004.parquet").unlink()  # and this is damage
    with pytest.raises(StoreDamaged, match="is missing"):
        open_store(path).items()


def test_a_shard_that_goes_while_it_is_opened_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, twenty = tmp_path / "s", pictures(20).items
    write(path, twenty, part_items=5)
    store = open_store(path)

    def replaced(*_: object, **__: object) -> None:
        """HDF5 finds the file, looks at it again by its name, and then it is gone."""
        monkeypatch.undo()
        with StoreWriter.open(path, spec=SPEC, features=FEATURES, overwrite=True) as writer:
            add(writer, twenty[:7])
        raise OSError("Unable to synchronously open file (can't retrieve stat info for file)")

    monkeypatch.setattr("h5py.File", replaced)
    with pytest.raises(StoreChanged, match="was overwritten or compacted while"):
        store.gallery()


def test_readers_while_it_is_overwritten_again_and_again(tmp_path: Path) -> None:
    path, done = tmp_path / "s", threading.Event()
    write(path, pictures(6).items)
    seen: Counter[object] = Counter()

    def read() -> None:
        while not done.is_set():
            try:
                store = open_store(path)
                gallery = store.gallery()
                assert len(gallery.images("itc")) == len(gallery)
                seen[len(gallery)] += 1
            except StoreChanged:
                seen["changed"] += 1

    with ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        for count in (6, 9) * 6:
            with StoreWriter.open(path, spec=SPEC, features=FEATURES, overwrite=True) as writer:
                add(writer, pictures(count).items)
        while not any(reader.done() for reader in readers) and not seen[9]:
            time.sleep(0.001)  # the last one stays
        done.set()
        for reader in readers:
            reader.result()
    assert set(seen) <= {0, 6, 9, "changed"}
    assert seen[6] + seen[9] > 0
