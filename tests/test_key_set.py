"""Sets of keys: what is there is found, one by one and all at once, whatever was added when."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from retrieval_engine.records import Modality
from retrieval_engine.store import StoreWriter, key_set
from retrieval_engine.store.key_set import KeySet, SortedBytes
from retrieval_engine.store.keys import KEY_RAW, hex_keys
from retrieval_engine.testing.store_data import ONLY_ITC, SPEC


def drawn(count: int, seed: int = 0) -> "np.ndarray[tuple[int], np.dtype[np.bytes_]]":
    """(count,) keys; some begin alike, some end in zeros."""
    raw = np.random.default_rng(seed).integers(0, 256, (count, 32), np.uint8)
    raw[::3, :9] = seed
    raw[::5, -3:] = 0
    raw[0], raw[1, 1:] = 0, 0
    return np.unique(np.frombuffer(raw.tobytes(), KEY_RAW))


@pytest.mark.parametrize("recent", [7, 10**6])
def test_what_was_added_is_there_and_nothing_else(
    recent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set, "_RECENT", recent)
    keys, rng = drawn(300), np.random.default_rng(1)
    old, new, absent = np.split(rng.permutation(keys), [100, 200])
    found = KeySet(np.sort(old))
    for start in range(0, 100, 9):
        some = np.concatenate([old[start : start + 2], new[start : start + 9]])
        assert found.add(some).tolist() == new[start : start + 9].tolist()
    there = np.concatenate([old, new])
    for kept in (found, pickle.loads(pickle.dumps(found))):
        assert kept.array().tobytes() == np.sort(there).tobytes()
        assert len(kept) == 200
        assert kept.have(keys).tolist() == np.isin(keys, there).tolist()
        assert all(key in kept for key in kept)
        assert not any(key.decode() in kept for key in hex_keys(absent).tolist())
    gone = np.concatenate([new[:50], absent[:1]])
    found.discard(gone)
    assert found.have(keys).tolist() == np.isin(keys, np.concatenate([old, new[50:]])).tolist()
    assert not any(key.decode() in found for key in hex_keys(gone).tolist())
    found.update(key.decode() for key in hex_keys(gone).tolist())
    assert found.have(gone).all()


def test_digests_in_any_order_are_found_by_bisection() -> None:
    rows = np.frombuffer(drawn(64).tobytes(), "S16")[::2]
    digests = [rows[i : i + 1].tobytes() for i in range(len(rows))]
    shuffled = SortedBytes(np.random.default_rng(2).permutation(rows))
    assert all(digest in shuffled for digest in digests)
    assert b"\xff" * 16 not in shuffled
    assert digests[3][:15] + b"\x01" not in shuffled
    assert digests[0] not in SortedBytes(rows[:0])


def test_a_part_is_forgotten_after_its_keys_joined_the_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set, "_RECENT", 8)
    keys = drawn(40)
    block = np.ones((40, 1, 4), np.float16)
    with StoreWriter.open(tmp_path / "s", spec=SPEC, features=ONLY_ITC) as writer:
        part = writer.part()
        part.add(Modality.IMAGES, keys[:20], {"itc": block[:20]})
        part.commit()
        part = writer.part()
        part.add(Modality.IMAGES, keys[10:35], {"itc": block[:25]})
        assert writer.present(Modality.IMAGES, keys).tolist() == [n < 35 for n in range(40)]
        part.discard()
        assert writer.present(Modality.IMAGES, keys).tolist() == [n < 20 for n in range(40)]
