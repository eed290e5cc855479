"""What a store need not be told twice, and which of two rows wins."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval_engine.errors import (
    FeatureMissing,
)
from retrieval_engine.records import Caption, Modality
from retrieval_engine.store import StoreWriter, describe, open_store
from retrieval_engine.testing.store_data import (
    CAPTION_FEATURES,
    FEATURES,
    IMAGE_FEATURES,
    KEYS,
    ONLY_ITC,
    SOURCE,
    SPEC,
    add,
    failure,
    key_of,
    pictures,
    rows,
    write,
)


def test_an_item_is_unchanged_until_anything_about_it_changes(tmp_path: Path) -> None:
    content = pictures(8)
    item = content.items[3]
    changes = (
        replace(item, uri="/elsewhere.jpg"),
        replace(item, size_bytes=7),
        replace(item, mtime_ns=7),
        replace(item, split="dev"),
        replace(item, captions=item.captions[1:]),
        replace(item, captions=(*item.captions[:2], Caption(id="3.jpg#2", text="a cat"))),
        replace(item, captions=(*item.captions[:2], replace(item.captions[2], id="other"))),
        replace(item, meta={"number": 4}),
        replace(item, id="4.jpg"),
    )
    write(tmp_path / "s", content.items)
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=FEATURES) as writer:
        assert all(writer.unchanged(known, SOURCE) for known in content.items)
        assert not any(writer.unchanged(changed, SOURCE) for changed in changes)
        assert not writer.unchanged(item, "folder:/other")
        # Back and forth within one session: what was committed last counts.
        add(writer, [changes[3]])
        assert writer.unchanged(changes[3], SOURCE)
        assert not writer.unchanged(item, SOURCE)
        writer.remove(SOURCE, [item.id])
        assert not writer.unchanged(changes[3], SOURCE)
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=FEATURES) as writer:
        assert not writer.unchanged(item, SOURCE)
        assert not writer.unchanged(changes[3], SOURCE)


def test_an_item_without_its_rows_is_not_unchanged(tmp_path: Path) -> None:
    item = pictures(8).items[3]
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=FEATURES) as writer:
        part = writer.part()
        part.add_items(SOURCE, [(item, key_of(item))])
        part.commit()
        assert not writer.unchanged(item, SOURCE)
        part = writer.part()
        part.add(Modality.IMAGES, [key_of(item)], rows(IMAGE_FEATURES, [key_of(item)]))
        keys = [caption.key for caption in item.captions]
        part.add(Modality.CAPTIONS, keys[1:], rows(CAPTION_FEATURES, keys[1:]))
        part.commit()
    for missing in (True, False):
        with StoreWriter.open(tmp_path / "s", spec=SPEC, features=FEATURES) as writer:
            assert writer.unchanged(item, SOURCE) != missing
            part = writer.part()
            part.add(Modality.CAPTIONS, keys[:1], rows(CAPTION_FEATURES, keys[:1]))
            part.commit()
    images_only = {Modality.IMAGES: IMAGE_FEATURES}
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=images_only) as writer:
        assert writer.unchanged(item, SOURCE)


def test_keys_and_present_know_open_parts_and_forget_discarded_ones(tmp_path: Path) -> None:
    block = np.ones((16, 1, 4), np.float16)
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer:
        part = writer.part()
        part.add(Modality.IMAGES, KEYS[4:8], {"itc": block[:4]})
        assert list(writer.keys(Modality.IMAGES)) == KEYS[4:8]
        part.commit()
        part = writer.part()
        part.add(Modality.IMAGES, KEYS[6:12], {"itc": block[:6]})
        assert list(writer.keys(Modality.IMAGES)) == KEYS[4:12]
        part.discard()
        expected = [4 <= i < 8 for i in range(16)]
        assert writer.present(Modality.IMAGES, KEYS).tolist() == expected
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer:
        assert list(writer.keys(Modality.IMAGES)) == KEYS[4:8]
        assert writer.present(Modality.IMAGES, KEYS).tolist() == expected
        assert writer.present(Modality.CAPTIONS, KEYS).all()  # none are asked for here
    assert [file.name for file in (tmp_path / "s" / "shards").iterdir()] == ["images-00000.h5"]


def test_a_part_may_be_begun_while_the_last_is_committed_elsewhere(tmp_path: Path) -> None:
    content = pictures(12)
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=FEATURES) as writer:
        thread = threading.Thread(target=add, args=(writer, content.items[:6]))
        thread.start()
        second = writer.part()
        thread.join()
        keys = content.keys[6:]
        second.add(Modality.IMAGES, keys, rows(IMAGE_FEATURES, keys))
        second.add_items(SOURCE, [(item, key_of(item)) for item in content.items[6:]])
        second.commit()
    assert open_store(tmp_path / "s").gallery().ids == [item.id for item in content.items]


def test_items_keep_their_place_and_the_latest_row(tmp_path: Path) -> None:
    path, items = tmp_path / "s", pictures(6).items
    write(path, items)
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        changed = replace(items[1], split="changed")
        add(writer, [pictures(1, start=50).items[0], changed])
        add(writer, [replace(items[1], split="elsewhere")], source="folder:/other")
        writer.remove(SOURCE, [items[3].id, items[4].id])
        add(writer, [items[4]])
    table = open_store(path).items()
    ids = ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.jpg", "50.jpg", "1.jpg"]
    assert table["id"].to_pylist() == ids
    assert table["split"].to_pylist()[1] == "changed"
    assert table["source"].to_pylist()[-1] == "folder:/other"
    assert open_store(path).items("elsewhere")["uri"].to_pylist() == [items[1].uri]


def test_finish_removes_what_a_whole_pass_did_not_see(tmp_path: Path) -> None:
    path, items = tmp_path / "s", pictures(5).items
    failures = [failure(f"{i}.jpg") for i in (7, 8)]
    foreign = replace(failures[0], source="folder:/other")
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        add(writer, items)
        assert writer.finish(SOURCE, failures=[*failures, foreign]) == 0
        assert writer.failures() == [*failures, foreign]
        seen = {items[0].id, items[4].id, "8.jpg"}
        assert writer.finish(SOURCE, failures=[failures[1]], seen=seen) == 3
        assert writer.failures() == [foreign, failures[1]]
    assert open_store(path).items()["id"].to_pylist() == ["0.jpg", "4.jpg"]


def test_a_failure_leaves_the_ledger_when_its_item_succeeds(tmp_path: Path) -> None:
    path, items = tmp_path / "s", pictures(3).items
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        writer.part().commit([failure("0.jpg"), failure("9.jpg", "line\nbreak, ümlaut")])
        writer.part().commit([failure("0.jpg", "empty")])
        assert open_store(path).failures() == [
            failure("0.jpg", "empty"),
            failure("9.jpg", "line\nbreak, ümlaut"),
        ]
        assert open_store(path).manifest.parts == ()
        add(writer, items)
    assert [failure.item_id for failure in open_store(path).failures()] == ["9.jpg"]


def test_images_without_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    path, content = tmp_path / "s", pictures(6)
    write(path, content.items)
    late = pictures(2, start=10).items
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        part = writer.part()
        part.add_items(SOURCE, [(item, key_of(item)) for item in late])
        part.commit()
    store = open_store(path)
    assert len(store.items()) == 8
    assert store.gallery().ids == [item.id for item in content.items]
    assert store.gallery().left_out == 2
    assert describe(store).rows[Modality.IMAGES] == 6


def test_a_feature_some_rows_lack_says_how_many(tmp_path: Path) -> None:
    path, content = tmp_path / "s", pictures(6)
    images_only = {Modality.IMAGES: IMAGE_FEATURES[:1]}
    with StoreWriter.open(path, spec=SPEC, features=images_only) as writer:
        add(writer, content.items)
    with StoreWriter.open(path, spec=SPEC, features={Modality.IMAGES: IMAGE_FEATURES}) as writer:
        add(writer, content.items[:4])
    store = open_store(path)
    assert store.gallery().images("itc").shape == (6, 2, 8)
    with pytest.raises(FeatureMissing, match=r"2 of 6 rows of images .* no current pooled"):
        store.gallery().images("pooled")
    found = store.rows(Modality.IMAGES, content.keys, "pooled")
    assert (found >= 0).tolist() == [True] * 4 + [False] * 2
    assert describe(store).coverage[Modality.IMAGES] == {"itc": 6, "pooled": 4}
