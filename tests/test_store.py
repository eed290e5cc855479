"""Writing and reading a store: what is refused, what is reused, what wins."""

import json
import os
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_engine.errors import (
    FeatureMissing,
    FingerprintMismatch,
    ShapeError,
    StoreError,
    StoreNotFound,
    UsageError,
)
from retrieval_engine.records import Caption, Failure, Feature, Item, Modality
from retrieval_engine.store import StoreWriter, Strings, describe, open_store
from tests.store_data import (
    CAPTION_FEATURES,
    FEATURES,
    IMAGE_FEATURES,
    RETRAINED,
    RETRAINED_CAPTION_FEATURES,
    SOURCE,
    SPEC,
    add,
    key_of,
    pictures,
    rows,
    values,
    write,
)

ITC = Feature(name="itc", shape=(1, 4), dtype="float16", fingerprint="f")
ONLY_ITC = {Modality.IMAGES: [ITC]}
KEYS = [f"{i:064x}" for i in range(16)]


# --- refused at the door ---


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 70000.0])
def test_refuses_what_is_not_finite_and_names_the_key(tmp_path: Path, poison: float) -> None:
    block = np.ones((5, 1, 4), np.float32)
    block[3, 0, 2] = poison  # 70000 is infinity in float16
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer:
        part = writer.part()
        with pytest.raises(StoreError, match=f"{KEYS[3]} holds NaN or infinity"):
            part.add_images(KEYS[:5], {"itc": block})
        part.add_images(KEYS[:1], {"itc": block[:1]})
        part.commit()
    assert open_store(tmp_path / "s").count(Modality.IMAGES) == 1


def test_refuses_zero_vectors_one_by_one(tmp_path: Path) -> None:
    itc = replace(ITC, shape=(2, 4))
    pooled = Feature(name="pooled", shape=(2, 4), dtype="float32", fingerprint="f")
    features = {Modality.IMAGES: [itc, pooled]}
    block = np.ones((3, 2, 4), np.float32)
    half = block.copy()
    half[1, 0] = -0.0
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=features) as writer:
        part = writer.part()
        # Every vector of `itc` is compared alone; `pooled` is one vector, whatever its shape.
        with pytest.raises(StoreError, match=f"itc of image {KEYS[1]} holds a zero vector"):
            part.add_images(KEYS[:3], {"itc": half, "pooled": block})
        part.add_images(KEYS[:3], {"itc": block, "pooled": half})
        half[1] = 0
        with pytest.raises(StoreError, match=f"pooled of image {KEYS[1]} holds a zero vector"):
            part.add_images(KEYS[:3], {"itc": block, "pooled": half})


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"itc": np.ones((3, 4), np.float16)},
        {"itc": np.ones((2, 1, 4), np.float16)},
        {"itc": np.ones((3, 1, 4), np.int32)},
        {"itc": np.ones((3, 1, 4), np.float16), "pooled": np.ones((3, 4), np.float16)},
    ],
    ids=["none", "shape", "count", "dtype", "undeclared"],
)
def test_refuses_other_forms_than_declared(
    tmp_path: Path, arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float16]]]
) -> None:
    with (
        StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer,
        pytest.raises(ShapeError, match="declared"),
    ):
        writer.part().add_images(KEYS[:3], arrays)


@pytest.mark.parametrize("key", ["", "ab", "g" * 64, " " + "0" * 63, "0" * 65])
def test_refuses_what_is_no_sha256(tmp_path: Path, key: str) -> None:
    with (
        StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer,
        pytest.raises(StoreError, match="key"),
    ):
        writer.part().add_images([key], {"itc": np.ones((1, 1, 4), np.float16)})


def test_refuses_a_feature_called_like_the_key_column(tmp_path: Path) -> None:
    features = {Modality.IMAGES: [replace(ITC, name="key")]}
    with pytest.raises(UsageError, match="'key'"):
        StoreWriter.open(tmp_path / "s", spec=SPEC, features=features)


@pytest.mark.parametrize("broken", ["\udcff.jpg", float("nan")])
def test_refuses_items_that_cannot_be_written_down(tmp_path: Path, broken: str | float) -> None:
    item = Item(id="a", uri="/a", meta={"x": broken})
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer:
        assert not writer.unchanged(item, SOURCE)
        with pytest.raises(StoreError, match="item 'a' of folder:/pictures cannot be stored"):
            writer.part().add_items(SOURCE, [(item, KEYS[0])])


def test_does_not_move_into_a_directory_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=r"not empty: it holds holiday\.jpg"):
            StoreWriter.open(tmp_path, spec=SPEC, features=ONLY_ITC, overwrite=overwrite)
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_path_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="no store at"):
        open_store(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot write a store"):
        StoreWriter.open(tmp_path / "file" / "s", spec=SPEC, features=ONLY_ITC)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", pictures(1).items)
    for name in ("store.json", "manifest.json"):
        file = tmp_path / "s" / name
        before = file.read_text()
        file.write_text(json.dumps({**json.loads(before), "format_version": 2}))
        with pytest.raises(StoreError, match=f"{name} has format version 2, this vlre reads 1"):
            open_store(tmp_path / "s")
        file.write_text(before)


# --- encoders never mix ---


def test_another_encoder_is_refused_with_both_named(tmp_path: Path) -> None:
    write(tmp_path / "s", pictures(3).items)
    with pytest.raises(FingerprintMismatch) as caught:
        StoreWriter.open(tmp_path / "s", spec=RETRAINED, features=FEATURES)
    assert SPEC.fingerprint[:12] in caught.value.message
    assert RETRAINED.fingerprint[:12] in caught.value.message
    assert "--overwrite" in caught.value.hint


def test_a_feature_of_other_weights_is_refused_under_the_same_spec(tmp_path: Path) -> None:
    write(tmp_path / "s", pictures(3).items)
    other = {**FEATURES, Modality.CAPTIONS: RETRAINED_CAPTION_FEATURES}
    with pytest.raises(FingerprintMismatch, match="itc in"):
        StoreWriter.open(tmp_path / "s", spec=SPEC, features=other)


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", pictures(3).items)
    finer = {Modality.IMAGES: [replace(IMAGE_FEATURES[0], dtype="float32")]}
    with pytest.raises(ShapeError, match=r"keeps itc as float16\[2, 8\], not float32\[2, 8\]"):
        StoreWriter.open(tmp_path / "s", spec=SPEC, features=finer)


def test_adopting_an_encoder_makes_only_changed_features_stale(tmp_path: Path) -> None:
    path, content = tmp_path / "s", pictures(12)
    write(path, content.items)
    between = {**FEATURES, Modality.CAPTIONS: RETRAINED_CAPTION_FEATURES}
    with StoreWriter.open(path, spec=RETRAINED, features=between, adopt_spec=True) as writer:
        store = open_store(path)
        assert store.fingerprint == RETRAINED.fingerprint
        assert store.count(Modality.IMAGES) == 12
        assert store.count(Modality.CAPTIONS) == 0
        gallery = store.gallery()
        assert len(gallery) == 12
        assert (gallery.caption_rows == -1).all()
        part = writer.part()
        keys = sorted({caption.key for caption in content.captions})
        part.add_captions(keys, rows(RETRAINED_CAPTION_FEATURES, keys))
        part.commit()
        assert all(writer.unchanged(item, SOURCE) for item in content.items)
    found = open_store(path).gallery().captions("itc", np.float16)
    texts = [caption.key for caption in content.captions]
    np.testing.assert_array_equal(found, rows(RETRAINED_CAPTION_FEATURES, texts)["itc"])


# --- what need not be done again ---


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
        part.add_images([key_of(item)], rows(IMAGE_FEATURES, [key_of(item)]))
        keys = [caption.key for caption in item.captions]
        part.add_captions(keys[1:], rows(CAPTION_FEATURES, keys[1:]))
        part.commit()
    for missing in (True, False):
        with StoreWriter.open(tmp_path / "s", spec=SPEC, features=FEATURES) as writer:
            assert writer.unchanged(item, SOURCE) != missing
            part = writer.part()
            part.add_captions(keys[:1], rows(CAPTION_FEATURES, keys[:1]))
            part.commit()
    images_only = {Modality.IMAGES: IMAGE_FEATURES}
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=images_only) as writer:
        assert writer.unchanged(item, SOURCE)


def test_keys_and_present_know_open_parts_and_forget_discarded_ones(tmp_path: Path) -> None:
    block = np.ones((16, 1, 4), np.float16)
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer:
        part = writer.part()
        part.add_images(KEYS[4:8], {"itc": block[:4]})
        assert writer.keys(Modality.IMAGES) == KEYS[4:8]
        part.commit()
        part = writer.part()
        part.add_images(KEYS[6:12], {"itc": block[:6]})
        assert writer.keys(Modality.IMAGES) == KEYS[4:12]
        part.discard()
        expected = [4 <= i < 8 for i in range(16)]
        assert writer.present(Modality.IMAGES, KEYS).tolist() == expected
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer:
        assert writer.keys(Modality.IMAGES) == KEYS[4:8]
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
        second.add_images(keys, rows(IMAGE_FEATURES, keys))
        second.add_items(SOURCE, [(item, key_of(item)) for item in content.items[6:]])
        second.commit()
    assert open_store(tmp_path / "s").gallery().ids == [item.id for item in content.items]


# --- upserts ---


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
    failures = [_failure(f"{i}.jpg") for i in (7, 8)]
    foreign = replace(failures[0], source="folder:/other")
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        add(writer, items)
        assert writer.finish(SOURCE, failures=[*failures, foreign]) == 0
        assert writer.failures() == [*failures, foreign]
        seen = {items[0].id, items[4].id, "8.jpg"}
        assert writer.finish(SOURCE, failures=[failures[1]], seen=seen) == 3
        assert writer.failures() == [foreign, failures[1]]
    assert open_store(path).items()["id"].to_pylist() == ["0.jpg", "4.jpg"]


def _failure(item_id: str, reason: str = "truncated") -> Failure:
    return Failure(source=SOURCE, item_id=item_id, uri=f"/pictures/{item_id}", reason=reason)


def test_a_failure_leaves_the_ledger_when_its_item_succeeds(tmp_path: Path) -> None:
    path, items = tmp_path / "s", pictures(3).items
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        writer.part().commit([_failure("0.jpg"), _failure("9.jpg", "line\nbreak, ümlaut")])
        writer.part().commit([_failure("0.jpg", "empty")])
        assert open_store(path).failures() == [
            _failure("0.jpg", "empty"),
            _failure("9.jpg", "line\nbreak, ümlaut"),
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


# --- invariants ---


@st.composite
def _sessions(draw: st.DrawFn) -> list[tuple[list[int], list[list[int]]]]:
    """Writers one after another: which features each adds, and the keys of each of its parts."""
    some_features = st.lists(st.sampled_from([0, 1]), min_size=1, max_size=2, unique=True)
    parts = st.lists(st.lists(st.integers(0, 15), max_size=12), max_size=3)
    return draw(st.lists(st.tuples(some_features, parts), min_size=1, max_size=3))


@settings(max_examples=25, deadline=None)
@given(sessions=_sessions(), seed=st.integers(0, 9))
def test_reads_back_the_last_row_written(
    sessions: list[tuple[list[int], list[list[int]]]], seed: int
) -> None:
    latest: dict[tuple[str, str], int] = {}
    version = 0
    with tempfile.TemporaryDirectory() as folder:
        for chosen, parts in sessions:
            features = {Modality.IMAGES: [IMAGE_FEATURES[i] for i in chosen]}
            with StoreWriter.open(folder, spec=SPEC, features=features) as writer:
                for numbers in parts:
                    part = writer.part()
                    for number in numbers:  # within a part, too, the last one counts
                        version += 1
                        key = KEYS[number]
                        forms = features[Modality.IMAGES]
                        part.add_images([key], rows(forms, [key], version))
                        latest.update({(form.name, key): version for form in forms})
                    part.commit()
        store = open_store(folder)
        for feature in IMAGE_FEATURES:
            known = [key for key in KEYS if (feature.name, key) in latest]
            if feature.name not in store.features(Modality.IMAGES):
                assert not known
                continue
            found = store.rows(Modality.IMAGES, KEYS, feature.name)
            assert [key for key, row in zip(KEYS, found, strict=True) if row >= 0] == known
            order = np.random.default_rng(seed).permutation(len(known)).astype(int)
            asked = [known[i] for i in order]
            read = store.read(
                Modality.IMAGES, feature.name, store.rows(Modality.IMAGES, asked, feature.name)
            )
            for row, key in zip(read, asked, strict=True):
                expected = values(feature, key, latest[feature.name, key])
                np.testing.assert_array_equal(row, expected)


@settings(max_examples=30, deadline=None)
@given(
    batches=st.lists(st.integers(0, 700), min_size=1, max_size=5),
    width=st.sampled_from([1, 96, 40_000]),
    seed=st.integers(0, 99),
)
def test_any_rows_over_chunk_borders(batches: list[int], width: int, seed: int) -> None:
    """Rows of 2 bytes, 192 bytes and 80 kB: thousands in a chunk, hundreds, and one."""
    batches = [min(n, 6) if width == 40_000 else n for n in batches]
    rng = np.random.default_rng(seed)
    total = sum(batches)
    wide = rng.standard_normal((total, width)).astype(np.float16) + np.float16(9)
    keys = [rng.bytes(32).hex() for _ in range(total)]
    feature = Feature(name="pooled", shape=(width,), dtype="float16", fingerprint="f")
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter.open(folder, spec=SPEC, features={Modality.IMAGES: [feature]}) as writer:
            part, start = writer.part(), 0
            for n in batches:
                part.add_images(keys[start : start + n], {"pooled": wide[start : start + n]})
                start += n
            assert part.images == total
            part.commit()
        store = open_store(folder)
        asked = rng.integers(0, max(total, 1), min(total, 200))
        found = store.rows(Modality.IMAGES, [keys[i] for i in asked])
        np.testing.assert_array_equal(store.read(Modality.IMAGES, "pooled", found), wide[asked])
        np.testing.assert_array_equal(store.read(Modality.IMAGES, "pooled", slice(None)), wide)


def test_keys_that_share_their_first_bytes_stay_apart(tmp_path: Path) -> None:
    keys = [f"{'ab' * 8}{i:048x}" for i in (5, 3, 0, 4, 1, 2)] + [f"{'00' * 31}{1:02x}", "0" * 64]
    block = np.arange(1, 33, dtype=np.float16).reshape(8, 1, 4)
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer:
        part = writer.part()
        part.add_images(keys, {"itc": block})
        part.add_images(keys[:2], {"itc": block[:2] + 100})
        part.commit()
        assert writer.keys(Modality.IMAGES) == sorted(keys)
    store = open_store(tmp_path / "s")
    assert store.rows(Modality.IMAGES, keys).tolist() == list(range(8))
    block[:2] += 100
    np.testing.assert_array_equal(store.read(Modality.IMAGES, "itc", np.arange(8)), block)


def test_more_shards_than_may_be_open_at_once(tmp_path: Path) -> None:
    items = pictures(70).items
    write(tmp_path / "s", items, part_items=1)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    store = open_store(tmp_path / "s")
    expected = rows(IMAGE_FEATURES, [key_of(item) for item in items])["itc"]
    for _ in range(2):
        np.testing.assert_array_equal(store.gallery().images("itc", np.float16), expected)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 64
    store.close()
    np.testing.assert_array_equal(store.gallery().images("itc", np.float16), expected)


def test_threads_read_the_same_store(tmp_path: Path) -> None:
    items = pictures(40).items
    write(tmp_path / "s", items, part_items=8)
    store = open_store(tmp_path / "s")
    expected = rows(IMAGE_FEATURES, [key_of(item) for item in items])["itc"]
    wrong: list[int] = []

    def read(seed: int) -> None:
        for _ in range(20):
            order = np.random.default_rng(seed).permutation(40)
            if not np.array_equal(store.read(Modality.IMAGES, "itc", order), expected[order]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_strings_are_a_sequence(tmp_path: Path) -> None:
    write(tmp_path / "s", pictures(7).items)
    ids = open_store(tmp_path / "s").gallery().ids
    assert isinstance(ids, Strings)
    plain = [f"{i}.jpg" for i in range(7)]
    assert list(ids) == plain
    assert ids[-1] == plain[-1]
    assert ids[2:5] == plain[2:5]
    assert ids[::-2] == plain[::-2]
    assert ids[5:2] == []
    assert "3.jpg" in ids
    assert ids != plain[:-1]
    with pytest.raises(IndexError):
        ids[7]


def test_overwriting_starts_anew_and_never_reuses_a_name(tmp_path: Path) -> None:
    path, content = tmp_path / "s", pictures(9)
    write(path, content.items, part_items=3)
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        writer.part().commit([_failure("x")])
    with StoreWriter.open(path, spec=RETRAINED, features=ONLY_ITC, overwrite=True) as writer:
        assert open_store(path).failures() == []
        assert len(open_store(path).items()) == 0
        assert len(open_store(path).gallery()) == 0
        part = writer.part()
        part.add_images(KEYS[:2], {"itc": np.ones((2, 1, 4), np.float16)})
        part.commit()
    store = open_store(path)
    assert store.fingerprint == RETRAINED.fingerprint
    assert store.features(Modality.IMAGES) == {"itc": ITC}
    assert [file.name for file in (path / "shards").iterdir()] == ["images-00003.h5"]
