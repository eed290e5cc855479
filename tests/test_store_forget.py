"""What is no longer wanted goes: forgotten sources, moved folders, superseded rows."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.encoding import EncodeOptions, encode, open_changed
from retrieval_engine.errors import SourceEmpty, SourceError, StoreDamaged, StoreError, UsageError
from retrieval_engine.index import build_index
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.records import Modality
from retrieval_engine.search import Searcher
from retrieval_engine.store import (
    Store,
    StoreWriter,
    compact_store,
    describe,
    forget_source,
    open_store,
)
from retrieval_engine.testing.images import jpeg
from retrieval_engine.testing.store_data import (
    FEATURES,
    SOURCE,
    SPEC,
    add,
    failure,
    pictures,
    write,
)
from tests import tiny
from tests.store_crash import kill

OTHER = "folder:/other"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    path = tiny.save_blip(tmp_path_factory.mktemp("blip"))
    return open_encoder(str(path), device="cpu", dtype="float32")


def _folder(path: Path, numbers: range, captions: bool = False) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        (path / f"{i}.jpg").write_bytes(jpeg(i))
        if captions:
            (path / f"{i}.txt").write_text(f"a dog {i}\n")
    return path


def _uris(store: Path) -> list[str]:
    return [str(uri) for uri in open_store(store).items()["uri"].to_pylist()]


def _everything(store: Store) -> dict[str, Any]:
    """All that a reader can see: items, ledger, and every feature of every row."""
    gallery = store.gallery()
    features: dict[str, Any] = {}
    for modality in Modality:
        rows = gallery.image_rows if modality is Modality.IMAGES else gallery.caption_rows
        for name in store.features(modality):
            have = store.having(modality, name, rows)
            values = store.read(modality, name, rows[have])
            features[f"{modality} {name}"] = have.tolist(), values.tobytes()
    return {"items": store.items().to_pylist(), "failures": store.failures(), **features}


# --- forget ---


def test_forgetting_takes_one_source_out(tmp_path: Path) -> None:
    path, items = tmp_path / "s", pictures(6).items
    write(path, items)
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        add(writer, pictures(4, start=3).items, source=OTHER)
        writer.part().commit([failure("x.jpg"), replace(failure("y.jpg"), source=OTHER)])
    assert describe(open_store(path)).sources == {SOURCE: 6, OTHER: 4}
    assert forget_source(path, SOURCE) == 6
    store = open_store(path)
    assert store.items()["source"].to_pylist() == [OTHER] * 4
    assert [f.item_id for f in store.failures()] == ["y.jpg"]
    assert store.count(Modality.IMAGES) == 7  # features stay for another time
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        assert writer.present(Modality.IMAGES, pictures(6).keys).all()
    with pytest.raises(UsageError, match=r"holds nothing of 'folder:/pictures'; it holds: "
                       r"folder:/other \(4\)"):  # fmt: skip
        forget_source(path, SOURCE)


@pytest.mark.parametrize("form", ["folder:{p}", "{p}", "relative", "folder:relative"])
def test_a_gone_folder_is_forgotten_by_any_name(
    tmp_path: Path, encoder: Encoder, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = _folder(tmp_path / "relative", range(3)), tmp_path / "s"
    encode(f"folder:{folder}", store, encoder=encoder)
    shutil.rmtree(folder)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        main, ["store", "forget", form.format(p=folder), "--store", str(store), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["forgotten"] == 3
    assert _uris(store) == []


def test_a_ledger_alone_can_be_forgotten(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=FEATURES) as writer:
        writer.part().commit([failure("x.jpg")])
    assert forget_source(tmp_path / "s", SOURCE) == 0
    assert open_store(tmp_path / "s").failures() == []


# --- compact ---


@pytest.fixture
def worn(tmp_path: Path) -> Path:
    """A store with superseded rows, stale forms, removed items, gaps and small parts."""
    path, items = tmp_path / "worn", pictures(12).items
    images_only = {Modality.IMAGES: FEATURES[Modality.IMAGES][:1], Modality.CAPTIONS: []}
    with StoreWriter.open(path, spec=SPEC, features=images_only) as writer:
        add(writer, pictures(3, start=20).items)
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        for start in range(0, 12, 2):
            add(writer, items[start : start + 2])
        add(writer, items[:5], version=1)  # the same keys with other values: the last row counts
        writer.remove(SOURCE, [items[1].id, items[2].id])
        add(writer, pictures(2, start=30).items, source=OTHER)
        writer.part().commit([failure("x.jpg")])
    forget_source(path, OTHER)
    return path


def test_compacting_changes_nothing_that_is_seen(worn: Path) -> None:
    before = _everything(open_store(worn))
    files = open_store(worn).manifest.files()
    done = compact_store(worn)
    store = open_store(worn)
    assert _everything(store) == before
    assert store.verify() == []
    assert done.rows_before == sum(f.rows for f in files)
    live = 12 - 2 + 3
    captions = {c["text"] for item in before["items"] for c in item["captions"]}
    without = {c.text for i in pictures(3, start=20).items for c in i.captions}
    assert done.rows_after == 2 * live + len(captions - without)
    assert done.bytes_after < done.bytes_before
    listed = {f.name for f in store.manifest.files()}
    assert {p.name for p in (worn / "shards").iterdir()} == listed
    assert not listed & {f.name for f in files}
    again = compact_store(worn)
    assert (again.rows_after, again.bytes_after) == (done.rows_after, done.bytes_after)
    assert {f.name for f in open_store(worn).manifest.files()} == listed


def test_a_compacted_store_is_encoded_no_second_time(tmp_path: Path, encoder: Encoder) -> None:
    folder, store = _folder(tmp_path / "p", range(6), captions=True), tmp_path / "s"
    options = EncodeOptions(part_rows=2)
    encode(f"folder:{folder}", store, encoder=encoder, options=options)
    (folder / "1.jpg").unlink()
    encode(f"folder:{folder}", store, encoder=encoder, options=options)
    compact_store(store)
    assert open_store(store).count(Modality.IMAGES) == 5
    report = encode(f"folder:{folder}", store, encoder=encoder)
    assert (report.images.encoded, report.images.reused) == (0, 5)
    assert (report.captions.encoded, report.removed) == (0, 0)


def test_parts_of_a_compacted_store_are_bounded(worn: Path) -> None:
    before = _everything(open_store(worn))
    compact_store(worn, part_bytes=200)
    store = open_store(worn)
    assert _everything(store) == before
    assert max(f.rows for f in store.manifest.files() if f.name.startswith("images")) == 3
    compact_store(worn)  # joins them again
    assert _everything(open_store(worn)) == before


def test_a_damaged_store_is_not_compacted(worn: Path) -> None:
    shard = max((worn / "shards").glob("images-*.h5"), key=lambda p: p.stat().st_size)
    before = {p.name: p.stat().st_size for p in (worn / "shards").iterdir()}
    data = bytearray(shard.read_bytes())
    for at in range(2048, len(data), 7):
        data[at] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises((StoreDamaged, StoreError)):
        compact_store(worn)
    assert {p.name: p.stat().st_size for p in (worn / "shards").iterdir()} == before


def test_killed_while_compacting(tmp_path: Path) -> None:
    worn, items = tmp_path / "worn", pictures(6).items
    write(worn, items[:4])
    with StoreWriter.open(worn, spec=SPEC, features=FEATURES) as writer:
        add(writer, items[2:], version=1)
        writer.remove(SOURCE, [items[0].id])
    before = _everything(open_store(worn))
    runs = kill("compact", worn, tmp_path / "k", 99)
    assert [r["ended"] for r in runs] == [-9] * (len(runs) - 1) + [0]
    assert (
        len(runs) == 3 + 1 + 7 + 1
    )  # renames of new files and the manifest, then deletions of old ones
    for one in runs:
        path = Path(one["path"])
        assert _everything(open_store(path)) == before
        assert open_store(path).verify() == []
        compact_store(path)
        assert _everything(open_store(path)) == before


def test_compact_as_typed(worn: Path) -> None:
    result = CliRunner().invoke(main, ["store", "compact", "--store", str(worn), "--json"])
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["rows_after"] < facts["rows_before"]
    told = CliRunner().invoke(main, ["store", "compact", "--store", str(worn)]).stdout
    assert told.startswith(f"{worn}: {facts['rows_after']:,} rows became {facts['rows_after']:,}")


# --- moved, emptied, unreadable ---


def test_a_moved_folder_takes_its_items_along(tmp_path: Path, encoder: Encoder) -> None:
    store = tmp_path / "s"
    p, other = (
        _folder(tmp_path / "p", range(3), captions=True),
        _folder(tmp_path / "o", range(9, 11)),
    )
    encode(f"folder:{p}", store, encoder=encoder)
    encode(f"folder:{other}", store, encoder=encoder)
    p.rename(tmp_path / "q")
    report = encode(f"folder:{tmp_path / 'q'}", store, encoder=encoder)
    assert (report.images.encoded, report.moved, report.removed) == (0, 3, 0)
    here = [f"{tmp_path}/q/{i}.jpg" for i in range(3)]
    assert sorted(_uris(store)) == sorted([f"{other}/9.jpg", f"{other}/10.jpg", *here])


def test_a_copy_is_no_move(tmp_path: Path, encoder: Encoder) -> None:
    store, p = tmp_path / "s", _folder(tmp_path / "p", range(3))
    encode(f"folder:{p}", store, encoder=encoder)
    shutil.copytree(p, tmp_path / "q")
    assert encode(f"folder:{tmp_path / 'q'}", store, encoder=encoder).moved == 0
    assert len(_uris(store)) == 6


def test_captions_of_a_gone_folder_are_not_lost(tmp_path: Path, encoder: Encoder) -> None:
    """The same picture elsewhere without its captions: the item with the captions stays."""
    store, p = tmp_path / "s", _folder(tmp_path / "p", range(2), captions=True)
    encode(f"folder:{p}", store, encoder=encoder)
    _folder(tmp_path / "q", range(2))
    (tmp_path / "q" / "0.txt").write_text("a dog 0\nand another\n")
    shutil.rmtree(p)
    assert encode(f"folder:{tmp_path / 'q'}", store, encoder=encoder).moved == 1
    assert sorted(_uris(store)) == [f"{p}/1.jpg", *(f"{tmp_path}/q/{i}.jpg" for i in range(2))]


def test_an_emptied_folder_empties_its_items(tmp_path: Path, encoder: Encoder) -> None:
    store, p = tmp_path / "s", _folder(tmp_path / "p", range(3))
    q = _folder(tmp_path / "q", range(5, 7))
    with pytest.raises(SourceEmpty, match="no picture in"):
        encode(f"folder:{_folder(tmp_path / 'e', range(0))}", store, encoder=encoder)
    assert not store.exists()
    for folder in (p, q):
        encode(f"folder:{folder}", store, encoder=encoder)
    for file in p.iterdir():
        file.unlink()
    with pytest.raises(SourceError, match="no picture"):  # a part of it says nothing
        encode(f"folder:{p}?glob=*.jpg", store, encoder=encoder)
    with pytest.raises(SourceError, match="nothing was overwritten"):
        encode(f"folder:{p}", store, encoder=encoder, options=EncodeOptions(overwrite=True))
    assert len(_uris(store)) == 5
    source = open_changed(f"folder:{p}", store)
    report = encode(source, store, encoder=encoder)
    assert (report.removed, report.images.encoded) == (3, 0)
    assert "are taken out of the store" in source.notes[0]
    assert _uris(store) == [f"{q}/5.jpg", f"{q}/6.jpg"]


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder in which the rights of files count, also where the tests run as root."""
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        if is_root:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if is_root:
                os.seteuid(0)


def test_an_unreadable_subfolder_never_loses_its_items(as_nobody: Path, encoder: Encoder) -> None:
    store, p = as_nobody / "s", _folder(as_nobody / "p", range(3))
    secret = _folder(p / "secret", range(5, 7))
    encode(f"folder:{p}", store, encoder=encoder)
    secret.chmod(0)
    try:
        source = open_changed(f"folder:{p}", store)
        assert encode(source, store, encoder=encoder).removed == 0
        assert "1 folders cannot be read" in source.notes
        assert len(_uris(store)) == 5
        for file in p.glob("*.jpg"):
            file.unlink()
        with pytest.raises(SourceError, match="cannot be read"):  # not empty: unreadable
            encode(f"folder:{p}", store, encoder=encoder)
        assert len(_uris(store)) == 5
    finally:
        secret.chmod(0o755)
    assert encode(f"folder:{p}", store, encoder=encoder).removed == 3
    assert len(_uris(store)) == 2


# --- identical content is one hit ---


@pytest.mark.parametrize("with_index", [False, True])
def test_identical_content_is_one_hit(tmp_path: Path, encoder: Encoder, with_index: bool) -> None:
    store, a = tmp_path / "s", _folder(tmp_path / "a", range(6))
    b = _folder(tmp_path / "b", range(3), captions=True)
    for folder in (a, b):
        encode(f"folder:{folder}", store, encoder=encoder)
    (a / "1.jpg").unlink()  # its copy in b has captions; the item of a stays until it is encoded
    index = tmp_path / "i"
    if with_index:
        build_index(open_store(store), index)
    engine = Searcher(open_store(store), index if with_index else None, encoder)
    for k in (2, 6, 9, 10**9):
        hits = engine.search("a dog on grass", k)
        numbers = [Path(hit.uri).name for hit in hits]
        assert len(set(numbers)) == len(numbers) == min(k, 6)
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        shown = {Path(hit.uri).name: Path(hit.uri).parent.name for hit in hits}
        assert shown.get("1.jpg", "b") == "b"  # the copy that is there
        assert {shown.get(f"{i}.jpg", "a") for i in (0, 2, 3, 4, 5)} == {"a"}
    alike = engine.search(b / "2.jpg", 3)
    assert alike[0].uri == f"{a}/2.jpg"
    assert len({Path(hit.uri).name for hit in alike}) == 3
    assert np.isclose(alike[0].score, 1, atol=1e-3)
