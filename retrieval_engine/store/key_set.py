"""Which keys are there, for one key or many at once, without an object for each of them."""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.store.keys import KEY_RAW, find_keys, heads_of, hex_keys, raw_keys

_RECENT = 16384  # as objects, before they join the array


class SortedBytes:
    """Digests of one length, found by bisection.

    Args:
        rows: (n,) `S` array of them, in any order.
    """

    def __init__(self, rows: NDArray[np.bytes_]) -> None:
        heads = heads_of(rows)
        if not (heads[1:] >= heads[:-1]).all():
            order = np.argsort(heads)
            rows, heads = rows[order], heads[order]
        self._width = rows.dtype.itemsize
        self._heads = memoryview(heads.data)
        self._bytes = np.ascontiguousarray(rows).view(np.uint8).data

    def __contains__(self, digest: bytes) -> bool:
        head, width = int.from_bytes(digest[:8]), self._width
        at = bisect_left(self._heads, head)
        while at < len(self._heads) and self._heads[at] == head:
            if self._bytes[at * width : (at + 1) * width] == digest:
                return True
            at += 1
        return False


class KeySet:
    """Keys that are there; may be asked by several threads while one adds.

    Args:
        keys: (n,) `S32` at the beginning, ascending and distinct.
    """

    def __init__(self, keys: NDArray[np.bytes_]) -> None:
        self._turn = threading.Lock()
        self._recent: dict[bytes, None] = {}
        self._sorted = keys
        self._single: tuple[NDArray[np.bytes_], SortedBytes] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return KeySet, (self.array(),)

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def __iter__(self) -> Iterator[str]:
        """As 64 hex digits, ascending."""
        return (key.decode() for key in hex_keys(self.array()).tolist())

    def __contains__(self, key: object) -> bool:
        # What is recent first: it moves to the array before it is forgotten here.
        raw = bytes.fromhex(str(key))
        return raw in self._recent or raw in self._bisected()

    def array(self) -> NDArray[np.bytes_]:
        """(n,) `S32`, ascending."""
        with self._turn:
            return self._joined()

    def have(self, keys: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """(n,) whether each `S32` key is there."""
        recent = self._recent
        found = find_keys(self._sorted, keys) >= 0
        if recent:
            unsure = np.flatnonzero(~found)
            found[unsure] = [piece in recent for piece in _pieces(keys[unsure])]
        return found

    def add(self, keys: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        """Add `S32` keys; returns those that were not there."""
        fresh = keys[~self.have(keys)]
        with self._turn:
            self._recent.update(dict.fromkeys(_pieces(fresh)))
            if len(self._recent) > max(_RECENT, len(self._sorted) // 8):
                self._sorted = self._joined()
                self._recent = {}
        return fresh

    def update(self, keys: Iterable[str]) -> None:
        """Add keys of 64 hex digits."""
        self.add(raw_keys(list(keys)))

    def discard(self, keys: NDArray[np.bytes_]) -> None:
        """Take `S32` keys out."""
        gone = _pieces(keys)
        with self._turn:
            joined = [piece for piece in gone if self._recent.pop(piece, gone) is gone]
            if joined:
                there = find_keys(self._sorted, keys)
                self._sorted = np.delete(self._sorted, there[there >= 0])

    def _bisected(self) -> SortedBytes:
        keys, single = self._sorted, self._single
        if single is None or single[0] is not keys:
            single = self._single = keys, SortedBytes(keys)
        return single[1]

    def _joined(self) -> NDArray[np.bytes_]:
        if not self._recent:
            return self._sorted
        recent = np.sort(np.frombuffer(b"".join(self._recent), KEY_RAW))
        return np.insert(self._sorted, np.searchsorted(self._sorted, recent), recent)


def _pieces(keys: NDArray[np.bytes_]) -> list[bytes]:
    # Not `tolist`: NumPy would drop the zero bytes that a key may end with.
    data, width = keys.tobytes(), KEY_RAW.itemsize
    return [data[i : i + width] for i in range(0, len(data), width)]
