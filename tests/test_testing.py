"""The shipped contracts: faults fail the tests that are meant for them, and pytest is asked for."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval_engine import open_encoder, testing
from retrieval_engine.index import ExactIndex
from retrieval_engine.index.grouping import Items, Scores
from retrieval_engine.models import Arrays, Encoder
from retrieval_engine.records import Modality
from retrieval_engine.testing import EncoderContract, IndexContract
from tests import tiny


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Contract().open(tmp_path_factory.mktemp("blip"))


class Contract(EncoderContract):
    __test__ = False

    def open(self, folder: Path) -> Encoder:
        return open_encoder(str(tiny.save_blip(folder)), device="cpu", dtype="float32")


class Faulty:
    """An encoder whose texts pass through a fault."""

    def __init__(self, encoder: Encoder, fault: Callable[[Arrays], Arrays]) -> None:
        self._encoder = encoder
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_texts(self, texts: Sequence[str], features: Sequence[str]) -> Arrays:
        known = self._encoder.features(Modality.CAPTIONS)
        return self._fault(self._encoder.encode_texts(texts, [f for f in features if f in known]))


def changed(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {name: change(rows) for name, rows in arrays.items()}


def normalised_over_the_batch(rows: NDArray[Any]) -> NDArray[Any]:
    return rows - rows.mean(axis=0) if rows.dtype == np.float32 else rows


@pytest.mark.parametrize(
    ("test", "fault"),
    [
        ("test_features_are_of_the_declared_form", changed(lambda rows: rows.astype(np.float64))),
        ("test_features_are_of_the_declared_form", changed(lambda rows: rows[:, :1])),
        (
            "test_different_inputs_have_different_vectors",
            changed(lambda rows: rows[:1].repeat(5, 0)),
        ),
        ("test_itc_rows_have_unit_length", changed(lambda rows: rows * 1.01)),
        ("test_alone_is_as_in_a_batch", changed(normalised_over_the_batch)),
        ("test_rows_come_in_the_order_asked", changed(lambda rows: np.sort(rows, axis=0))),
        ("test_only_what_was_asked_comes", lambda arrays: {**arrays, "more": np.zeros(5)}),
        ("test_an_unknown_feature_is_refused_with_those_there_are", changed(lambda rows: rows)),
    ],
)
def test_a_faulty_encoder_fails(encoder: Encoder, test: str, fault: Any) -> None:
    run = getattr(Contract(), test)
    run(encoder, Modality.CAPTIONS)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run(Faulty(encoder, fault), Modality.CAPTIONS)


class Indexed(IndexContract):
    __test__ = False

    def __init__(self, change: Callable[[ExactIndex, Any, int], tuple[Scores, Items]]) -> None:
        self._change = change

    def build(self, vectors: Any) -> Any:
        index = ExactIndex(vectors)
        search = ExactIndex.search.__get__(index)
        index.search = lambda queries, k, allowed=None: self._change(search, queries, k)  # type: ignore[method-assign]
        return index


@pytest.mark.parametrize(
    ("test", "change"),
    [
        (
            "test_finds_what_brute_force_finds",
            lambda search, queries, k: tuple(found[:, ::-1] for found in search(queries, k)),
        ),
        (
            "test_queries_are_not_normalised",
            lambda search, queries, k: search(queries / np.linalg.norm(queries), k),
        ),
        (
            "test_more_than_there_are_gives_all",
            lambda search, queries, k: search(queries, min(k, 7)),
        ),
        (
            "test_a_batch_answers_as_its_queries_alone",
            lambda search, queries, k: search(queries - queries.mean(axis=0), k),
        ),
    ],
)
def test_a_faulty_index_fails(test: str, change: Any) -> None:
    getattr(Indexed(lambda search, queries, k: search(queries, k)), test)()  # type: ignore[operator]
    with pytest.raises(AssertionError):
        getattr(Indexed(change), test)()


@pytest.mark.parametrize("library", ["pytest", "hypothesis"])
def test_without_its_libraries_the_extra_is_named(library: str) -> None:
    code = f"""
import sys
sys.modules[{library!r}] = None
from retrieval_engine.errors import MissingExtra
try:
    import retrieval_engine.testing
except MissingExtra as error:
    print(error, error.hint, sep="; ")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == (
        f"{library} is not installed; install it with `pip install 'vlre[testing]'`\n"
    )


def test_every_public_name_loads() -> None:
    for name in testing.__all__:
        contract = getattr(testing, name)
        assert contract.__name__ == name
        assert [method for method in dir(contract) if method.startswith("test_")]
    with pytest.raises(AttributeError, match="no attribute 'MindContract'"):
        testing.MindContract  # noqa: B018
