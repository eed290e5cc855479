"""Half-precision rows are made float32 as NumPy makes them, bit by bit."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval_engine.index.halves import in_pieces

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = EVERY[np.isfinite(EVERY)]


def whole(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    parts: list[NDArray[np.float32]] = []
    lengths = []
    for first, part, squared in in_pieces(rows):
        assert first == sum(len(before) for before in parts)
        parts.append(part.copy())
        lengths.append(squared)
    made: NDArray[np.float32] = np.concatenate(parts)
    longest = np.max(lengths)  # NaN of one is NaN of all
    np.testing.assert_allclose(longest, np.max((made.astype(np.float64) ** 2).sum(axis=1)), 1e-5)
    return made


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval_engine.index.halves._PIECE", 1000)


@pytest.mark.parametrize("halves", [FINITE, EVERY], ids=["finite", "with infinity and NaN"])
@pytest.mark.parametrize("dim", [1, 64])
def test_every_number_is_what_numpy_makes_of_it(halves: NDArray[np.float16], dim: int) -> None:
    rows = halves.reshape(-1, dim)
    with np.errstate(invalid="ignore"):
        made, right = whole(rows), rows.astype(np.float32)
    numbers = ~np.isnan(right)
    assert made[numbers].tobytes() == right[numbers].tobytes()
    assert np.isnan(made[~numbers]).all()


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", "<f8"])
def test_rows_of_any_precision_order_and_stride(dtype: str) -> None:
    rows = np.random.default_rng(0).standard_normal((201, 40)).astype(dtype)
    for some in (rows, rows[::2], rows[:, ::3], np.asfortranarray(rows)):
        assert whole(some).tolist() == some.astype(np.float32).tolist()


def test_rows_longer_than_a_piece_come_one_by_one() -> None:
    rows = np.ones((3, 5000), np.float16)
    assert [len(part) for _, part, _ in in_pieces(rows)] == [1, 1, 1]
