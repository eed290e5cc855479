"""What holds for any rows, any keys and any number of shards."""

import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_engine.records import Feature, Modality
from retrieval_engine.store import StoreWriter, Strings, open_store
from retrieval_engine.testing.store_data import (
    FEATURES,
    IMAGE_FEATURES,
    ITC,
    KEYS,
    ONLY_ITC,
    RETRAINED,
    SPEC,
    failure,
    key_of,
    pictures,
    rows,
    values,
    write,
)


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
                        part.add(Modality.IMAGES, [key], rows(forms, [key], version))
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
                part.add(
                    Modality.IMAGES, keys[start : start + n], {"pooled": wide[start : start + n]}
                )
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
        part.add(Modality.IMAGES, keys, {"itc": block})
        part.add(Modality.IMAGES, keys[:2], {"itc": block[:2] + 100})
        part.commit()
        assert list(writer.keys(Modality.IMAGES)) == sorted(keys)
    store = open_store(tmp_path / "s")
    assert store.rows(Modality.IMAGES, keys).tolist() == list(range(8))
    block[:2] += 100
    np.testing.assert_array_equal(store.read(Modality.IMAGES, "itc", np.arange(8)), block)


def test_more_shards_than_may_be_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_engine.store.shard_reader._OPEN_FILES", 4)
    items = pictures(12).items
    write(tmp_path / "s", items, part_items=1)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    store = open_store(tmp_path / "s")
    expected = rows(IMAGE_FEATURES, [key_of(item) for item in items])["itc"]
    for _ in range(2):
        np.testing.assert_array_equal(store.gallery().images("itc", np.float16), expected)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 4
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
        writer.part().commit([failure("x")])
    with StoreWriter.open(path, spec=RETRAINED, features=ONLY_ITC, overwrite=True) as writer:
        assert open_store(path).failures() == []
        assert len(open_store(path).items()) == 0
        assert len(open_store(path).gallery()) == 0
        part = writer.part()
        part.add(Modality.IMAGES, KEYS[:2], {"itc": np.ones((2, 1, 4), np.float16)})
        part.commit()
    store = open_store(path)
    assert store.fingerprint == RETRAINED.fingerprint
    assert store.features(Modality.IMAGES) == {"itc": ITC}
    assert [file.name for file in (path / "shards").iterdir()] == ["images-00003.h5"]
