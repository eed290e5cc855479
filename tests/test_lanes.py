"""Batches on a CPU, each computed by a thread of its own: features, pair scores and captions."""

import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval_engine import open_encoder, open_store
from retrieval_engine.caption import CaptionJob, CaptionRequest, DecodingOptions
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.errors import EncoderError
from retrieval_engine.models import Encoder
from retrieval_engine.models.lanes import in_lanes
from retrieval_engine.sources.decode import decode
from retrieval_engine.testing.images import jpeg
from tests import tiny

IMAGES, BATCH = 30, 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def encoder(checkpoint: Path) -> Encoder:
    return open_encoder(str(checkpoint), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    for i in range(IMAGES):
        (path / f"{i:04}.jpg").write_bytes(jpeg(i))
        (path / f"{i:04}.txt").write_text(f"a dog {i}\na cat on grass\n")
    return path


@pytest.fixture
def cores() -> Iterator[None]:
    """A machine of four, whatever this one has."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Four:
    """A model of which four threads make use."""

    batches_at_once = 4


def test_results_come_in_order_and_inputs_are_read_a_little_ahead() -> None:
    read: list[int] = []

    def inputs() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    found = in_lanes(lambda n: n * n, inputs(), Four())
    for number, (value, square) in enumerate(found):
        assert (value, square) == (number, number**2)
        assert len(read) <= number + 10
    assert len(read) == 100


def test_what_a_lane_raises_is_raised_as_it_is() -> None:
    def task(number: int) -> int:
        return 1 // (number - 7)

    found = in_lanes(task, iter(range(20)), Four())
    assert [next(found) for _ in range(7)][-1] == (6, -1)
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_nothing_before_an_end_waits_for_what_comes_after_it() -> None:
    read: list[str] = []

    def inputs() -> Iterator[str]:
        for value in ("end", "batch", "end", "batch"):
            read.append(value)
            yield value

    found = in_lanes(str.upper, inputs(), Four(), is_end=lambda value: value == "end")
    seen = [(next(found)[1], len(read)) for _ in range(4)]
    assert seen == [("END", 1), ("BATCH", 3), ("END", 3), ("BATCH", 4)]


def options(**more: Any) -> EncodeOptions:
    given: dict[str, Any] = {"batch_size": BATCH, "part_rows": 12, "store_dtype": "float32"}
    return EncodeOptions(**given | more)


class Watched:
    """An encoder that tells how many threads of torch's each call may use, and who calls."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.threads: list[int] = []
        self.callers: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_images(self, pixels: Any, features: Any) -> Any:
        self.threads.append(torch.get_num_threads())
        self.callers.add(threading.current_thread().name)
        return self._encoder.encode_images(pixels, features)


def test_the_number_of_cores_changes_no_bit(
    tmp_path: Path, folder: Path, encoder: Encoder, request: pytest.FixtureRequest
) -> None:
    encode(f"folder:{folder}", tmp_path / "one", encoder=encoder, options=options())
    request.getfixturevalue("cores")
    report = encode(f"folder:{folder}", tmp_path / "four", encoder=encoder, options=options())
    assert (report.images.encoded, report.captions.encoded) == (IMAGES, IMAGES + 1)
    one, four = (open_store(tmp_path / name).gallery() for name in ("one", "four"))
    assert list(one.ids) == list(four.ids)
    for name in ("itc", "pooled"):
        np.testing.assert_array_equal(one.images(name), four.images(name))


@pytest.mark.usefixtures("cores")
def test_batches_are_computed_at_once_and_torch_shares_out_again_afterwards(
    tmp_path: Path, folder: Path, encoder: Encoder
) -> None:
    met, calls = threading.Barrier(4, timeout=60), count()

    class Meeting(Watched):
        def encode_images(self, pixels: Any, features: Any) -> Any:
            if next(calls) < 4:
                met.wait()  # for three others, which no thread alone would ever meet
            return super().encode_images(pixels, features)

    watched = Meeting(encoder)
    encode(f"folder:{folder}", tmp_path / "store", encoder=watched, options=options())
    assert set(watched.threads) == {1}
    assert len(watched.callers) == 4
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("limit", [1, BATCH])
def test_a_batch_alone_is_shared_by_all_threads(
    tmp_path: Path, folder: Path, encoder: Encoder, limit: int
) -> None:
    watched = Watched(encoder)
    limited = options(limit=limit)
    encode(f"folder:{folder}", tmp_path / "store", encoder=watched, options=limited)
    assert watched.threads == [4]


@pytest.mark.usefixtures("cores")
def test_an_encoder_that_says_nothing_of_it_is_asked_by_one_thread(
    tmp_path: Path, folder: Path, encoder: Encoder
) -> None:
    class Silent(Watched):
        def __getattr__(self, name: str) -> Any:
            if name == "batches_at_once":
                raise AttributeError(name)
            return super().__getattr__(name)

    watched = Silent(encoder)
    encode(f"folder:{folder}", tmp_path / "store", encoder=watched, options=options())
    assert set(watched.threads) == {4}
    assert watched.callers == {threading.main_thread().name}


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("slow", [4, 16], ids=["of the first part", "beside it"])
def test_what_was_whole_before_a_lane_failed_stays(
    tmp_path: Path, folder: Path, encoder: Encoder, slow: int
) -> None:
    def begins_with(picture: int, pixels: Any) -> bool:
        first = encoder.preprocessor.pixels(decode((folder / f"{picture:04}.jpg").read_bytes()))
        return np.array_equal(pixels[0], first)

    class Failing(Watched):
        def encode_images(self, pixels: Any, features: Any) -> Any:
            if begins_with(slow, pixels):
                time.sleep(0.3)  # the batch that fails is read meanwhile
            if begins_with(20, pixels):
                raise RuntimeError("no more memory of this kind")
            return super().encode_images(pixels, features)

    with pytest.raises((EncoderError, RuntimeError), match="no more memory of this kind"):
        encode(f"folder:{folder}", tmp_path / "s", encoder=Failing(encoder), options=options())
    assert torch.get_num_threads() == 4
    kept = len(open_store(tmp_path / "s").gallery())
    assert kept == 12  # the first part; the second lacks its last batch
    report = encode(f"folder:{folder}", tmp_path / "s", encoder=encoder, options=options())
    assert (report.images.reused, report.images.encoded) == (kept, IMAGES - kept)


def test_pairs_have_the_same_scores_to_the_bit_whoever_shares_them(
    request: pytest.FixtureRequest,
) -> None:
    encoder = open_encoder("vlre-tiny", device="cpu", dtype="float32")
    side = encoder.preprocessor.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (40, side, side, 3), dtype=np.uint8)
    tokens = encoder.encode_images(pixels, ["tokens"])["tokens"]
    texts = ["a red ball", "two blue boxes on a table", "a dog", "a cat in a room at night"]
    pairs = np.stack(np.divmod(np.random.default_rng(1).permutation(160), 4), axis=1)
    matcher: Any = encoder.matcher()
    readers, seers, see = set(), set(), matcher.cross.keys_values

    def seen(states: Any) -> Any:
        seers.add(threading.current_thread())
        return see(states)

    matcher.cross.keys_values = seen

    def read(numbers: Any) -> Any:
        readers.add(threading.current_thread())
        return tokens[numbers]

    def scored() -> tuple[Any, list[int]]:
        told: list[int] = []
        return matcher.score_pairs(read, texts, pairs, advance=told.append), told

    alone, told = scored()
    request.getfixturevalue("cores")
    shared, told_then = scored()
    np.testing.assert_array_equal(alone, shared)
    assert told == told_then
    assert len(told) > 2
    assert sum(told) == len(pairs)
    assert readers == {threading.main_thread()}, "a store is read by one thread"
    assert len(seers) > 2
    assert torch.get_num_threads() == 4


def test_captions_are_the_same_and_in_order(
    folder: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    broken = tmp_path / "pictures"
    broken.mkdir()
    for path in folder.glob("*.jpg"):
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "0009.jpg").write_bytes(b"not a picture")
    given = CaptionRequest(
        targets=(str(broken),),
        store=tmp_path / "none",
        model="vlre-tiny",
        batch_size=BATCH,
        rank=True,
        options=DecodingOptions(beams=3, num_captions=2),
    )
    alone = CaptionJob(given)
    rows = list(alone.run())
    request.getfixturevalue("cores")
    shared = CaptionJob(given)
    assert list(shared.run()) == rows
    assert [row["image"] for row in rows] == [f"{i:04}.jpg" for i in range(IMAGES) if i != 9]
    assert len({row["caption"] for row in rows}) > 1
    for job in (alone, shared):
        assert (job.captioned, len(job.failures)) == (IMAGES - 1, 1)
