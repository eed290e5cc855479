"""The indexes of `search`: how each is built from rows, opened again, and asked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Answers = NDArray[np.int64]
Ask = Callable[[NDArray[np.float32], int], Answers]
GRAPH = [16, 32, 64, 128, 256, 512, 1024]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An index that is ready.

    Attributes:
        at: the search at an effort.
        efforts: from little to much.
    """

    at: Callable[[Any], Ask]
    efforts: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One kind of index.

    Attributes:
        build: from the inputs of a case into an empty folder.
        open: of that folder.
        package: the distribution; empty for ours.
        note: its settings.
        is_slow: building a million rows takes longer than anyone waits here.
    """

    build: Callable[[Path, Path], None]
    open: Callable[[Path], Opened]
    package: str = ""
    note: str = ""
    is_slow: bool = False


def rows_of(work: Path) -> NDArray[np.float32]:
    """(n, d) vectors, mapped."""
    rows: NDArray[np.float32] = np.load(work / "rows" / "0.npy", mmap_mode="r")
    return rows


def blocks(rows: NDArray[np.float32], size: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, rows) in parts."""
    for start in range(0, len(rows), size):
        yield start, np.ascontiguousarray(rows[start : start + size])


def build_ours(work: Path, out: Path, *, recipe: str) -> None:
    """From the store, its recall measured too, as `vlre index` does."""
    from retrieval_engine.index import build_index
    from retrieval_engine.store import open_store

    build_index(open_store(work / "store"), out / "index", recipe=recipe)


def open_ours(folder: Path) -> Opened:
    """As recorded."""
    from retrieval_engine.index import open_index

    index = open_index(folder / "index")

    def at(_: object) -> Ask:
        return lambda queries, k: index.search(queries, k)[1]

    return Opened(at=at, efforts=["as built"])


def build_autofaiss(work: Path, out: Path) -> None:
    """One call, its defaults, within the memory of this machine."""
    import faiss
    from autofaiss import build_index

    index, _ = build_index(
        embeddings=str(work / "rows"),
        save_on_disk=False,  # it would write figures that NumPy 2 has made no JSON
        metric_type="ip",
        max_index_memory_usage="4G",
        current_memory_available="12G",
        nb_cores=1,
        verbose=40,
    )
    faiss.write_index(index, str(out / "knn.index"))


def open_autofaiss(folder: Path) -> Opened:
    """A faiss index, with what its builder chose."""
    import faiss

    index = faiss.read_index(str(folder / "knn.index"))

    def at(_: object) -> Ask:
        return lambda queries, k: index.search(queries, k)[1]

    return Opened(at=at, efforts=["as built"])


def build_usearch(work: Path, out: Path) -> None:
    """Half precision, as its README suggests; connectivity as it comes."""
    from usearch.index import Index

    rows = rows_of(work)
    index = Index(ndim=rows.shape[1], metric="ip", dtype="f16")
    for start, block in blocks(rows, 50_000):
        index.add(np.arange(start, start + len(block)), block, threads=1)
    index.save(str(out / "index.usearch"))


def open_usearch(folder: Path) -> Opened:
    """Mapped from its file."""
    from usearch.index import Index

    index = Index.restore(str(folder / "index.usearch"), view=True)
    assert index is not None

    def at(effort: int) -> Ask:
        index.expansion_search = effort

        def ask(queries: NDArray[np.float32], k: int) -> Answers:
            found: Answers = index.search(queries[0], k).keys.astype(np.int64)[None]
            return found

        return ask

    return Opened(at=at, efforts=GRAPH)


def build_hnswlib(work: Path, out: Path) -> None:
    """M 32 and ef_construction 200."""
    import hnswlib

    rows = rows_of(work)
    index = hnswlib.Index(space="ip", dim=rows.shape[1])
    index.init_index(max_elements=len(rows), M=32, ef_construction=200)
    for start, block in blocks(rows, 50_000):
        index.add_items(block, np.arange(start, start + len(block)), num_threads=1)
    index.save_index(str(out / "index.bin"))


def open_hnswlib(folder: Path) -> Opened:
    """Read whole."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=256)
    index.load_index(str(folder / "index.bin"))
    index.set_num_threads(1)

    def at(effort: int) -> Ask:
        index.set_ef(effort)
        return lambda queries, k: index.knn_query(queries, k)[0].astype(np.int64)

    return Opened(at=at, efforts=GRAPH)


def build_lancedb(work: Path, out: Path) -> None:
    """A table and its default index, IVF_PQ."""
    import lancedb
    import pyarrow as pa

    rows = rows_of(work)

    def parts() -> Iterator[pa.RecordBatch]:
        for start, block in blocks(rows, 50_000):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), rows.shape[1])
            ids = pa.array(np.arange(start, start + len(block)))
            yield pa.record_batch([ids, vectors], names=["id", "vector"])

    first = next(parts())
    table = lancedb.connect(str(out)).create_table("rows", parts(), schema=first.schema)
    if len(rows) >= 1000:
        table.create_index(metric="dot", vector_column_name="vector")


def open_lancedb(folder: Path) -> Opened:
    """Effort is (lists looked at, how many times ten are compared exactly)."""
    import lancedb

    table = lancedb.connect(str(folder)).open_table("rows")

    def at(effort: tuple[int, int]) -> Ask:
        lists, refine = effort

        def ask(queries: NDArray[np.float32], k: int) -> Answers:
            asked = table.search(queries[0]).distance_type("dot").nprobes(lists)
            found = asked.refine_factor(refine).limit(k).select(["id"]).to_arrow()
            answers: Answers = found["id"].to_numpy()[None]
            return answers

        return ask

    return Opened(at=at, efforts=[(20, 1), (20, 10), (50, 20), (100, 50), (200, 100)])


def build_milvus(work: Path, out: Path) -> None:
    """Milvus Lite in a file, HNSW with M 32."""
    from pymilvus import DataType, MilvusClient

    rows, client = rows_of(work), MilvusClient(str(out / "milvus.db"))
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=rows.shape[1])
    index = client.prepare_index_params()
    settings = {"M": 32, "efConstruction": 200}
    index.add_index("vector", index_type="HNSW", metric_type="IP", params=settings)
    client.create_collection("rows", schema=schema, index_params=index)
    for start, block in blocks(rows, 5_000):
        data = [{"id": start + i, "vector": row} for i, row in enumerate(block)]
        client.insert("rows", data)
    client.flush("rows")
    client.close()


def open_milvus(folder: Path) -> Opened:
    """Effort is ef."""
    from pymilvus import MilvusClient

    client = MilvusClient(str(folder / "milvus.db"))
    client.load_collection("rows")

    def at(effort: int) -> Ask:
        given = {"metric_type": "IP", "params": {"ef": effort}}

        def ask(queries: NDArray[np.float32], k: int) -> Answers:
            found = client.search("rows", data=queries.tolist(), limit=k, search_params=given)
            return np.array([[hit["id"] for hit in hits] for hits in found])

        return ask

    return Opened(at=at, efforts=GRAPH)


EXACT = "vlre flat-fp16"
WAYS = {
    "vlre": Way(build=partial(build_ours, recipe="auto"), open=open_ours, note="`auto`"),
    EXACT: Way(build=partial(build_ours, recipe="flat-fp16"), open=open_ours),
    "autofaiss": Way(build=build_autofaiss, open=open_autofaiss, package="autofaiss"),
    "usearch": Way(
        build=build_usearch, open=open_usearch, package="usearch", note="f16", is_slow=True
    ),
    "hnswlib": Way(
        build=build_hnswlib, open=open_hnswlib, package="hnswlib", note="M 32", is_slow=True
    ),
    "lancedb": Way(build=build_lancedb, open=open_lancedb, package="lancedb", note="IVF_PQ"),
    "milvus-lite": Way(
        build=build_milvus, open=open_milvus, package="milvus-lite", note="HNSW, M 32", is_slow=True
    ),
}
