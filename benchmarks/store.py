"""How fast the store writes, reads and skips, against plain HDF5 and .npy files in the same run.

    python -m benchmarks.store             200,000 rows x 256 float16; 200,000 items x 5 captions
    python -m benchmarks.store --tiny      for a test
    python -m benchmarks.store --rows 1000000 --items 1000000

Peers: `npy` is how clip-retrieval keeps embeddings (np.save of a whole partition, Parquet beside
it); `h5py` is the usual hand-written file (one dataset, default chunks, no checksum). Neither has
keys, checks or a commit, so every line says whether a flipped bit is noticed when it is read.
Reads come from the page cache. Ways take turns; a figure is the median, with the lowest and highest.
MB per second of wall time suffer from whatever else the machine does; MB per second of CPU time
much less, but leave out the waiting for the disk (ours alone waits: it syncs what it commits).
"""

import argparse
import hashlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.report import emit
from retrieval_engine.errors import StoreDamaged
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.records import Caption, Feature, Item, Modality
from retrieval_engine.store import StoreWriter, open_store

SPEC = EncoderSpec(family="external", checkpoint="benchmark", weights={"image": "i", "text": "t"})
SOURCE = "folder:/pictures"
BLOCK = 8192
BATCH = 256

Rows = NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Rows of one feature and their keys."""

    name: str
    rows: Rows
    keys: list[str]

    @property
    def feature(self) -> Feature:
        shape = self.rows.shape[1:]
        return Feature(name=self.name, shape=shape, dtype="float16", fingerprint="f")


def data(name: str, count: int, shape: tuple[int, ...]) -> Data:
    """Random rows, made a block at a time."""
    rng = np.random.default_rng(0)
    rows = np.empty((count, *shape), np.float16)
    for start in range(0, count, 1024):
        rows[start : start + 1024] = rng.standard_normal(
            rows[start : start + 1024].shape, np.float32
        )
    return Data(name=name, rows=rows, keys=[rng.bytes(32).hex() for _ in range(count)])


class Ours:
    """The store."""

    name = "vlre"

    def __init__(self, folder: Path, data: Data, part_rows: int) -> None:
        self.path, self.data, self.part_rows = folder / "store", data, part_rows

    def write(self) -> None:
        features = {Modality.IMAGES: [self.data.feature]}
        with StoreWriter.open(self.path, spec=SPEC, features=features) as writer:
            for start in range(0, len(self.data.rows), self.part_rows):
                part = writer.part()
                stop = min(start + self.part_rows, len(self.data.rows))
                for low in range(start, stop, BATCH):
                    high = min(low + BATCH, stop)
                    block = {self.data.name: self.data.rows[low:high]}
                    part.add(Modality.IMAGES, self.data.keys[low:high], block)
                part.commit()

    def open(self) -> Callable[[Any], Rows]:
        store = open_store(self.path)
        return lambda rows: store.read(Modality.IMAGES, self.data.name, rows)

    def files(self) -> list[Path]:
        return sorted((self.path / "shards").iterdir())


class Plain:
    """One HDF5 file, appended to."""

    name = "h5py"

    def __init__(self, folder: Path, data: Data, part_rows: int) -> None:
        self.path, self.data = folder / "plain.h5", data

    def write(self) -> None:
        with h5py.File(self.path, "w") as file:
            shape = self.data.rows.shape
            dataset = file.create_dataset(
                "rows", (0, *shape[1:]), maxshape=(None, *shape[1:]), dtype="f2", chunks=True
            )
            for low in range(0, len(self.data.rows), BATCH):
                block = self.data.rows[low : low + BATCH]
                dataset.resize(low + len(block), axis=0)
                dataset[low:] = block

    def open(self) -> Callable[[Any], Rows]:
        dataset = h5py.File(self.path, "r")["rows"]

        def read(rows: Any) -> Rows:
            if isinstance(rows, slice):
                return dataset[rows]  # type: ignore[no-any-return]
            unique, back = np.unique(rows, return_inverse=True)
            return dataset[unique][back]  # type: ignore[no-any-return]

        return read

    def files(self) -> list[Path]:
        return [self.path]


class Npy:
    """Partitions of `.npy` beside a Parquet file of keys."""

    name = "npy"

    def __init__(self, folder: Path, data: Data, part_rows: int) -> None:
        self.path, self.data = folder / "npy", data

    def write(self) -> None:
        self.path.mkdir()
        np.save(self.path / "img_emb_0.npy", self.data.rows)
        pq.write_table(pa.table({"key": self.data.keys}), self.path / "metadata_0.parquet")

    def open(self) -> Callable[[Any], Rows]:
        rows = np.load(self.path / "img_emb_0.npy", mmap_mode="r")
        return lambda asked: np.array(rows[asked])

    def files(self) -> list[Path]:
        return [self.path / "img_emb_0.npy"]


WAYS = (Ours, Plain, Npy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """How long something took, in seconds."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Took:
    """How long a piece of work takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)


def spread(name: str, figures: list[float], digits: int = 1) -> dict[str, float]:
    """Median, lowest and highest of a figure."""
    return {
        name: round(statistics.median(figures), digits),
        f"{name}_low": round(min(figures), digits),
        f"{name}_high": round(max(figures), digits),
    }


def notices_a_flipped_bit(way: Ours | Plain | Npy) -> bool:
    """Whether reading everything fails after one bit of the features changed on disk."""
    file = way.files()[0]
    whole = file.read_bytes()
    at = whole.index(way.data.rows[1].tobytes()[:16])
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    try:
        way.open()(slice(None))
    except (StoreDamaged, OSError):
        return True
    finally:
        file.write_bytes(whole)
    return False


def features(data: Data, part_rows: int, repeats: int) -> None:
    """Write, read in order and gather at random, each way in turn."""
    rng = np.random.default_rng(1)
    mega = data.rows.nbytes / 1e6
    asked = rng.integers(0, len(data.rows), min(1000, len(data.rows) // 2))
    figures: dict[str, dict[str, list[Took]]] = {way.name: {} for way in WAYS}
    notices: dict[str, bool] = {}
    sizes: dict[str, int] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for make in WAYS:
                way = make(Path(folder), data, part_rows)
                found = figures[way.name]
                found.setdefault("write", []).append(timed(way.write))
                read = way.open()
                np.testing.assert_array_equal(read(slice(None)), data.rows)
                np.testing.assert_array_equal(read(asked), data.rows[asked])
                found.setdefault("read", []).append(timed(partial(in_order, read, data)))
                found.setdefault("gather", []).append(timed(partial(read, asked)))
                if way.name not in notices:
                    notices[way.name] = notices_a_flipped_bit(way)
                    sizes[way.name] = sum(file.stat().st_size for file in way.files())
    for name, found in figures.items():
        emit(
            "store.features",
            way=name,
            feature=data.name,
            shape=list(data.rows.shape),
            dtype="float16",
            bytes=sizes[name],
            repeats=repeats,
            **spread("write_mb_per_s", [mega / took.wall for took in found["write"]]),
            **spread("write_mb_per_cpu_s", [mega / took.cpu for took in found["write"]]),
            **spread("read_mb_per_s", [mega / took.wall for took in found["read"]]),
            **spread("read_mb_per_cpu_s", [mega / took.cpu for took in found["read"]]),
            gathered=len(asked),
            **spread("gather_ms", [1e3 * took.wall for took in found["gather"]], 2),
            equal=True,
            notices_a_flipped_bit=notices[name],
        )


def in_order(read: Callable[[Any], Rows], data: Data) -> None:
    """Read everything, a block at a time."""
    step = max(1, min(BLOCK, (8 << 20) // data.rows[0].nbytes))
    for start in range(0, len(data.rows), step):
        read(slice(start, start + step))


def items(start: int, stop: int) -> Iterator[Item]:
    """Items of five captions each."""
    for i in range(start, stop):
        name = f"{i:09d}.jpg"
        yield Item(
            id=name,
            uri=f"/data/pictures/{name}",
            captions=tuple(
                Caption(id=f"{name}#{j}", text=f"a dog runs over the grass in picture {i}, {j}")
                for j in range(5)
            ),
            split=("train", "val", "test")[i % 3],
            size_bytes=100_000 + i,
            mtime_ns=10**18 + i,
            meta={"number": i},
        )


def write_items(path: Path, count: int) -> float:
    """A store of items with small features; seconds."""
    form = Feature(name="itc", shape=(1, 16), dtype="float16", fingerprint="f")
    forms = {Modality.IMAGES: [form], Modality.CAPTIONS: [form]}
    vectors = np.random.default_rng(0).standard_normal((5 * BLOCK, 1, 16)).astype(np.float16)
    start_s = time.perf_counter()
    with StoreWriter.open(path, spec=SPEC, features=forms) as writer:
        for start in range(0, count, BLOCK):
            some = list(items(start, min(start + BLOCK, count)))
            keys = [hashlib.sha256(item.uri.encode()).hexdigest() for item in some]
            texts = [caption.key for item in some for caption in item.captions]
            part = writer.part()
            part.add(Modality.IMAGES, keys, {"itc": vectors[: len(keys)]})
            part.add(Modality.CAPTIONS, texts, {"itc": vectors[: len(texts)]})
            part.add_items(SOURCE, zip(some, keys, strict=True))
            part.commit()
    return time.perf_counter() - start_s


def skip(path: Path, count: int) -> None:
    """In a fresh process: open for writing, and how many unchanged items a second are skipped."""
    forms = dict(open_store(path).header.features)
    features = {modality: tuple(by_name.values()) for modality, by_name in forms.items()}
    start = time.perf_counter()
    with StoreWriter.open(path, spec=SPEC, features=features) as writer:
        assert writer.unchanged(next(items(0, 1)), SOURCE)
        open_s = time.perf_counter() - start
        some = list(items(0, min(count, 50_000)))
        skipped = timed(lambda: [writer.unchanged(item, SOURCE) for item in some])
        assert all(writer.unchanged(item, SOURCE) for item in some[:1000])
    print(
        json.dumps(
            {
                "open_s": round(open_s, 3),
                "unchanged_per_s": round(len(some) / skipped.wall),
                "peak_bytes": peak_bytes(),
            }
        )
    )


def gallery(path: Path, count: int) -> None:
    """In a fresh process: open a store and its gallery."""
    start = time.perf_counter()
    store = open_store(path)
    open_s = time.perf_counter() - start
    found = store.gallery()
    gallery_s = time.perf_counter() - start
    assert len(found) == count
    assert len(found.caption_rows) == 5 * count
    figures = {"open_ms": round(1e3 * open_s, 2), "gallery_s": round(gallery_s, 3)}
    print(json.dumps({**figures, "peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Peak memory of this process."""
    try:  # getrusage would count the parent's memory, which a child begins with on Linux
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


def in_process(work: str, path: Path, count: int) -> dict[str, Any]:
    """The figures of one piece of work in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.store", "--only", work, str(path), str(count)]
    here = Path(__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
    figures: dict[str, Any] = json.loads(run.stdout)
    return figures


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--token-rows", type=int, default=300)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        work, path, count = options.only
        {"skip": skip, "gallery": gallery}[work](Path(path), int(count))
        return
    rows, token_rows, count, repeats = (
        (600, 6, 60, 1)
        if options.tiny
        else (options.rows, options.token_rows, options.items, options.repeats)
    )
    features(data("itc", rows, (1, 256)), part_rows=50_000, repeats=repeats)
    features(data("tokens", token_rows, (577, 768)), part_rows=600, repeats=repeats)
    folder = Path(tempfile.mkdtemp())
    try:
        write_s = write_items(folder / "store", count)
        emit("store.items", items=count, captions=5 * count, items_per_s=round(count / write_s))
        for work in ("skip", "gallery"):
            figures = in_process(work, folder / "store", count)
            emit(f"store.{work}", items=count, captions=5 * count, **figures)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
