"""Several stores become one: nothing twice, nothing lost, nothing half."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from retrieval_engine.cli import main
from retrieval_engine.errors import FingerprintMismatch, StoreDamaged, StoreError, UsageError
from retrieval_engine.records import Failure, Item, JobShard, Modality
from retrieval_engine.store import (
    Store,
    StoreWriter,
    compact_store,
    describe,
    merge_stores,
    open_store,
    repair_store,
)
from retrieval_engine.testing.store_data import (
    CAPTION_FEATURES,
    FEATURES,
    IMAGE_FEATURES,
    RETRAINED,
    SOURCE,
    SPEC,
    add,
    failure,
    pictures,
    write,
)
from tests.store_crash import kill

PICTURES = pictures(24).items


def share(
    path: Path,
    shard: str,
    items: Sequence[Item] = PICTURES,
    failures: Sequence[Failure] = (),
    *,
    version: int = 0,
) -> Path:
    """What `vlre encode --shard` does to a store, from nothing or once more."""
    part = JobShard.of(shard)
    mine = [item for item in items if part.holds(item.id)]
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        writer.begin_shard(SOURCE, part)
        if new := [item for item in mine if not writer.unchanged(item, SOURCE)]:
            add(writer, new, version=version)
        seen = {item.id for item in mine} | {failed.item_id for failed in failures}
        writer.finish(SOURCE, failures=failures, seen=seen, shard=part)
    return path


def merge(*stores: Path) -> Path:
    """The last of the stores takes in the others."""
    return Path(merge_stores(stores[:-1], stores[-1]).store)


def everything(store: Store) -> dict[Any, Any]:
    """What a store holds, whatever the order of its rows."""
    found: dict[Any, Any] = {f.item_id: f for f in store.failures()}
    for row in store.items().to_pylist():
        of = {Modality.IMAGES: [row["key"]], Modality.CAPTIONS: [c["key"] for c in row["captions"]]}
        rows = {side: store.rows(side, keys) for side, keys in of.items()}
        found[row["source"], row["id"]] = (
            row,
            [
                store.read(side, name, rows[side]).tobytes()
                for side in Modality
                for name in store.features(side)
            ],
        )
    return found


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return [share(tmp_path / f"part-{n}", f"{n}/3") for n in (1, 2, 3)]


@pytest.fixture
def whole(tmp_path: Path) -> Store:
    write(tmp_path / "whole", PICTURES)
    return open_store(tmp_path / "whole")


def test_every_item_is_of_one_share_wherever_it_stands() -> None:
    ids = [f"{i}.jpg" for i in range(4000)] + ["ü", "", "caf\udce9.jpg"]
    shares = [JobShard(n, 7) for n in range(1, 8)]
    held = [[shard.number for shard in shares if shard.holds(item_id)] for item_id in ids]
    assert all(len(numbers) == 1 for numbers in held)
    sizes = [held.count([n]) for n in range(1, 8)]
    assert max(sizes) < 1.2 * min(sizes)
    # sha256("0.jpg") begins with these bytes: another program finds the same shares.
    assert held[0] == [0x3938D9535F5726B4 % 7 + 1]
    for wrong in ("0/8", "9/8", "3", "a/b", "3/0", "-1/8", "٣/8"):
        with pytest.raises(UsageError):
            JobShard.of(wrong)


def test_merged_shards_equal_one_store(tmp_path: Path, parts: list[Path], whole: Store) -> None:
    report = merge_stores(parts, tmp_path / "all")
    assert (report.stores, report.items, report.linked, report.copied) == (3, 24, 6, 0)
    assert [str(job) for job in report.jobs] == [f"3 of 3 shards of {SOURCE}"]
    merged = open_store(tmp_path / "all")
    assert everything(merged) == everything(whole)
    assert merged.verify() == []
    for side in Modality:
        assert merged.count(side) == whole.count(side)
    shard = parts[0] / "shards" / "images-00000.h5"
    assert shard.stat().st_nlink == 2
    # The parts may go, and a writer finds all as it is.
    for part in parts:
        shutil.rmtree(part)
    with StoreWriter.open(merged.path, spec=SPEC, features=FEATURES) as writer:
        assert all(writer.unchanged(item, SOURCE) for item in PICTURES)
        assert writer.finish(SOURCE, seen={item.id for item in PICTURES}) == 0
    assert open_store(merged.path).manifest.shards == ()  # all is here: no more a job of shards
    assert everything(open_store(merged.path)) == everything(whole)
    compact_store(merged.path)
    assert everything(open_store(merged.path)) == everything(whole)


def test_what_is_missing_is_said(tmp_path: Path, parts: list[Path], whole: Store) -> None:
    path = tmp_path / "all"
    with StoreWriter.open(tmp_path / "killed", spec=SPEC, features=FEATURES) as writer:
        writer.begin_shard(SOURCE, JobShard(2, 3))
    report = merge_stores([tmp_path / "killed", parts[0]], path)
    written = json.loads((path / "manifest.json").read_text())["shards"]
    assert all(len(entry.pop("state")) == 64 for entry in written)
    assert written == [
        {"source": SOURCE, "shard": "2/3", "reached": "begun"},
        {"source": SOURCE, "shard": "1/3", "reached": "whole"},
    ]
    [job] = report.jobs
    assert (job.missing, job.unfinished) == ((3,), (2,))
    assert str(job) == f"2 of 3 shards of {SOURCE}; 3/3 is missing; 2/3 is unfinished"
    assert f"  job: {job}" in [f"{a}: {b}" for a, b in describe(open_store(path)).lines()]
    again = merge_stores(parts, path)
    assert (again.stores, again.unchanged, again.items) == (2, 1, len(PICTURES) - report.items)
    assert not again.jobs[0].missing
    assert not again.jobs[0].unfinished
    assert everything(open_store(path)) == everything(whole)
    before = (path / "manifest.json").read_bytes()
    assert merge_stores(parts, path).unchanged == 3
    assert (path / "manifest.json").read_bytes() == before


def test_a_shard_that_changed_is_merged_again(tmp_path: Path, parts: list[Path]) -> None:
    path = tmp_path / "all"
    merge_stores(parts, path)
    # Of shard 2 one picture goes, one gets another caption, and one comes.
    mine = [item for item in PICTURES if JobShard(2, 3).holds(item.id)]
    changed = replace(mine[1], captions=mine[2].captions, mtime_ns=5, size_bytes=5)
    now = [changed, *mine[2:], *(i for i in pictures(30).items if i not in PICTURES)]
    share(parts[1], "2/3", now)
    for worn in (parts[1], path):  # whatever was rewritten since
        compact_store(worn)
    report = merge_stores(parts, path)
    came = len([i for i in now[-6:] if JobShard(2, 3).holds(i.id)])
    assert (report.stores, report.unchanged, report.removed) == (1, 2, 1)
    assert (report.items, report.replaced) == (came + 1, 1)
    found = everything(open_store(path))
    of_parts: dict[Any, Any] = {}
    for part in parts:
        of_parts |= everything(open_store(part))
    assert found == of_parts
    assert (SOURCE, mine[0].id) not in found


def test_equal_items_are_one_and_differing_ones_are_refused(
    tmp_path: Path, parts: list[Path]
) -> None:
    path = tmp_path / "all"
    write(tmp_path / "same", [replace(item, mtime_ns=3) for item in PICTURES[:5]])  # touched
    report = merge_stores([*parts, tmp_path / "same"], path)
    assert report.items == 24
    before = everything(open_store(path))
    write(tmp_path / "other", [replace(PICTURES[3], split="val", captions=())])
    with pytest.raises(StoreError, match=r"item '3.jpg' of folder:/pictures is not the same in"):
        merge_stores([tmp_path / "other"], path)
    assert everything(open_store(path)) == before
    with pytest.raises(StoreError, match="another split and captions"):
        merge_stores([*parts, tmp_path / "other"], tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()


def test_what_is_here_otherwise_is_no_job(tmp_path: Path, parts: list[Path], whole: Store) -> None:
    before = everything(whole)
    report = merge_stores(parts[:1], whole.path)
    assert (report.items, report.linked, report.jobs) == (0, 0, [])
    # A trial of a few items is no obstacle, and what is missing beside it is seen.
    write(tmp_path / "trial", PICTURES[:2])
    [job] = merge_stores(parts[:2], tmp_path / "trial").jobs
    assert job.missing == (3,)
    merge_stores(parts, tmp_path / "trial")
    assert everything(open_store(tmp_path / "trial")) == before


def test_rows_of_equal_content_are_seen_once(tmp_path: Path) -> None:
    twin = replace(PICTURES[3], id="twin.jpg")
    for name, item in (("a", PICTURES[3]), ("b", twin)):
        write(tmp_path / name, [item])
    merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    store = open_store(tmp_path / "all")
    assert store.count(Modality.IMAGES) == 1
    assert [row["id"] for row in store.items().to_pylist()] == ["3.jpg", "twin.jpg"]


def test_the_ledgers_become_one(tmp_path: Path) -> None:
    a, b, path = tmp_path / "a", tmp_path / "b", tmp_path / "all"
    share(a, "1/2", PICTURES, [failure("x.jpg"), failure("z.jpg"), failure("3.jpg")])
    write(b, [replace(PICTURES[3], id="x.jpg"), PICTURES[3]])
    with StoreWriter.open(b, spec=SPEC, features=FEATURES) as writer:
        writer.part().commit([failure("y.jpg")])
    merge_stores([a, b], path)
    names = {f.item_id for f in open_store(path).failures()}
    assert names == {"z.jpg", "y.jpg"}  # what is encoded in one of them has not failed
    share(a, "1/2", PICTURES)  # mended, or gone
    merge_stores([a, b], path)
    assert {f.item_id for f in open_store(path).failures()} == {"y.jpg"}


def test_only_stores_that_are_alike(tmp_path: Path, parts: list[Path]) -> None:
    other, fewer = tmp_path / "other", tmp_path / "fewer"
    with StoreWriter.open(other, spec=RETRAINED, features=FEATURES) as writer:
        add(writer, PICTURES[:2])
    with pytest.raises(FingerprintMismatch, match=r"other was made under encoder") as caught:
        merge_stores([parts[0], other], tmp_path / "all")
    assert str(parts[0]) in caught.value.hint
    some = {Modality.IMAGES: IMAGE_FEATURES[:1], Modality.CAPTIONS: CAPTION_FEATURES}
    with StoreWriter.open(fewer, spec=SPEC, features=some) as writer:
        add(writer, PICTURES[:2])
    with pytest.raises(StoreError, match=r"part-1 has float32\[6\] pooled of images, \S+fewer no$"):
        merge_stores([parts[0], fewer], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    with pytest.raises(UsageError, match="is among the parts"):
        merge_stores(parts, parts[0])


def test_a_damaged_part_is_found(tmp_path: Path, parts: list[Path], whole: Store) -> None:
    path, shard = tmp_path / "all", parts[1] / "shards" / "images-00000.h5"
    merge_stores(parts[:1], path)
    before, data = everything(open_store(path)), shard.read_bytes()
    shard.write_bytes(data[:-9] + bytes(9))  # HDF5 itself would not see it
    with pytest.raises(StoreDamaged, match=r"part-2/shards/images-00000\.h5"):
        merge_stores(parts, path)
    assert everything(open_store(path)) == before
    listed = {entry.name for entry in open_store(path).manifest.files()}
    assert {file.name for file in (path / "shards").iterdir()} == listed
    shard.write_bytes(data)
    merge_stores(parts, path)
    # And a target that was damaged later gets back what the parts have.
    broken = next((path / "shards").glob("items-*"))
    broken.write_bytes(broken.read_bytes()[:-1])
    repair_store(path)
    merge_stores(parts, path)
    assert everything(open_store(path)) == everything(whole)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    if not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev:
        pytest.skip("needs two file systems")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_on_another_file_system_files_are_copied(
    elsewhere: Path, parts: list[Path], whole: Store
) -> None:
    report = merge_stores(parts, elsewhere / "all")
    assert (report.linked, report.copied) == (0, 6)
    store = open_store(elsewhere / "all")
    assert store.verify() == []
    assert everything(store) == everything(whole)
    assert not list(store.path.glob("**/*.partial"))


@pytest.mark.parametrize(("begun", "kills"), [(True, 99), (False, 6)])
def test_killed_while_merging(tmp_path: Path, begun: bool, kills: int) -> None:
    """At any change of a directory: the target is as it was or as it must be."""
    items, target, folder = PICTURES[:8], tmp_path / "target", tmp_path / "k"
    share(folder / "part-1", "1/2", items, [failure("broken.jpg")])
    share(folder / "part-2", "2/2", items)
    target.mkdir()
    before: dict[Any, Any] = {}
    if begun:  # with an earlier state of the first
        merge(folder / "part-1", target)
        before = everything(open_store(target))
        share(folder / "part-1", "1/2", items[3:])
    runs = kill("merge", target, folder, kills)
    finished = merge(*sorted(folder.glob("part-*")), tmp_path / "finished")
    after = everything(open_store(finished))
    assert _items(before) != _items(after)
    ends = [run["ended"] for run in runs]
    assert ends == ([-9] * (len(runs) - 1) + [0] if begun else [-9] * kills)
    for run in runs:
        path = Path(run["path"])
        if (path / "store.json").exists():
            assert open_store(path).verify() == []
            assert _items(everything(open_store(path))) in (_items(before), _items(after))
        merge(*sorted(folder.glob("part-*")), path)
        assert everything(open_store(path)) == after
        listed = {entry.name for entry in open_store(path).manifest.files()}
        assert {file.name for file in (path / "shards").iterdir()} == listed


def _items(found: dict[Any, Any]) -> dict[Any, Any]:
    """Without the ledger, which is written first and is true before the rest is there."""
    return {name: value for name, value in found.items() if isinstance(name, tuple)}


# --- as typed ---


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments])


def test_merge_as_typed(tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (parts[0] / "metrics.json").write_text("{}")
    result = _run("store", "merge", "part-1", "part-2", "--store", "all")
    assert result.exit_code == 0, result.output
    count = len(open_store("all").items())
    assert result.stdout == f"all: {count} items of 2 stores, 4 files linked\n"
    assert "measure the whole with `vlre eval --recall`" in result.stderr
    assert not Path("all/metrics.json").exists()
    assert f"2 of 3 shards of {SOURCE}; 3/3 is missing\n" in result.stderr
    again = _run("store", "merge", *map(str, parts), "--store", "all", "--json")
    facts = json.loads(again.stdout)
    assert (facts["stores"], facts["unchanged"]) == (1, 2)
    assert facts["jobs"] == [{"source": SOURCE, "shards": 3, "missing": [], "unfinished": []}]
    assert json.loads(_run("store", "info", "--store", "all", "--json").stdout)["items"] == 24
    wrong = _run("store", "merge", "part-1", "none", "--store", "all")
    assert wrong.exit_code == 1
    assert "Error: no store at none\n" in wrong.stderr
