"""Data of every kind of source, to be put behind addresses."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_engine.records import Item
from retrieval_engine.sources import Source, read_item
from retrieval_engine.testing.images import jpeg
from retrieval_engine.urls import file_system


def write_data(folder: Path) -> Path:
    """Pictures in a folder, in two tars and in a table, and what is said of them."""
    pets = folder / "pets"
    for number, name in enumerate(["train/0.jpg", "train/1.jpg", "train/été.jpg", "val/0.jpg"]):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(jpeg(number))
    (pets / "train" / "0.txt").write_text("a dog\na cat\n")
    (pets / "val" / "captions.csv").write_text('image,caption\n0.jpg,"a bird, blue"\n')
    for name in ("pairs.csv", "pets/train/names.csv"):
        (folder / name).write_text("image,caption\n1.jpg,one\n0.jpg,none\n1.jpg,another\n")
    rows = {"id": ["x", "y"], "image": [jpeg(10), jpeg(11)], "caption": ["a boat", "a car"]}
    (folder / "tables").mkdir()
    pq.write_table(pa.table(rows), folder / "tables" / "a.parquet")
    for number, keys in enumerate(("ab", "cd")):
        with tarfile.open(folder / f"shard-{number}.tar", "w") as tar:
            for seed, key in enumerate(keys):
                _add(tar, f"{key}.jpg", jpeg(20 + 2 * number + seed))
                _add(tar, f"{key}.txt", f"a {key}".encode())
    return folder


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def put(folder: Path, url: str) -> None:
    """Copy a folder behind an address."""
    system = file_system(url.partition("://")[0])
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            system.pipe_file(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def items_of(source: Source) -> list[tuple[object, ...]]:
    """All of each item that does not depend on the place."""
    return [_of(item) for item in source.items()]


def _of(item: Item) -> tuple[object, ...]:
    return item.id, item.captions, item.split, item.meta, item.fault, read_item(item)
