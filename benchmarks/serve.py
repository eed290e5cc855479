"""How fast does `vlre serve` answer, and what do batches gain?

    python -m benchmarks.serve                    # full: two minutes
    python -m benchmarks.serve --scenes 50 --seconds 2 --clients 8

JSON lines: the first answer after the start of a process; a word search at ten requests a second;
searches a second with many clients, in batches and one by one, taken in turns in one run. Loopback
only; every question is another one, so that nothing is remembered.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np

from benchmarks.report import emit

_WORDS = [
    "dog",
    "cat",
    "bird",
    "horse",
    "man",
    "woman",
    "car",
    "boat",
    "tree",
    "house",
    "kite",
    "ball",
]
_COLOURS = ["red", "white", "black", "brown", "blue", "green", "yellow", "orange"]
_PLACES = [
    "on grass",
    "on sand",
    "in the snow",
    "on the street",
    "at night",
    "at dusk",
    "under a blue sky",
]
_TURNS = 3


def questions() -> Iterator[str]:
    """Short queries, each another one."""
    for number in itertools.count():
        colour, word, place = (
            group[number // step % len(group)]
            for group, step in ((_COLOURS, 1), (_WORDS, 8), (_PLACES, 96))
        )
        yield f"a {colour} {word} {place} {number // 672 or ''}".strip()


def make_store(folder: Path, scenes: int) -> Path:
    """A store of scenes, encoded by the command."""
    store = folder / "store"
    vlre("encode", f"scenes:{scenes}?seed=7", "--model", "vlre-tiny", "--store", str(store))
    vlre("index", "--store", str(store), "--index", str(folder / "index"))
    return store


def vlre(*words: str) -> None:
    """Run a command."""
    code = "from retrieval_engine.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def serving(store: Path, batch: int) -> Iterator[tuple[str, float]]:
    """A server in a process of its own; its address, and seconds from its start to an answer."""
    code = (
        "import sys; from retrieval_engine import Engine;"
        "from retrieval_engine.serve import ServeSettings, run_server;"
        f"run_server(Engine(store=sys.argv[1], index=sys.argv[2]), ServeSettings("
        f"port=int(sys.argv[3]), max_batch={batch}, max_waiting=4096))"
    )
    port = free_port()
    start = time.perf_counter()
    command = [sys.executable, "-c", code, str(store), str(store.with_name("index")), str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=address) as client:
            yield address, first_answer(client) - start
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def first_answer(client: httpx.Client) -> float:
    """The time when a search was first answered."""
    for _ in range(6_000):
        with contextlib.suppress(httpx.ConnectError):
            if client.post("/api/search", json={"text": "a dog"}).status_code == 200:
                return time.perf_counter()
        time.sleep(0.01)
    raise TimeoutError("the server did not answer within a minute")


async def steady(address: str, per_s: float, seconds: float) -> list[float]:
    """Milliseconds of each answer, asked at a steady rate whether answers come or not."""
    took: list[float] = []
    ask = questions()

    async with httpx.AsyncClient(base_url=address, timeout=60) as client:

        async def one(text: str) -> None:
            start = time.perf_counter()
            answer = await client.post("/api/search", json={"text": text, "k": 10})
            answer.raise_for_status()
            took.append(1e3 * (time.perf_counter() - start))

        for _ in range(10):
            await one(next(ask))
        took.clear()
        tasks = []
        begin = time.perf_counter()
        for number in range(int(per_s * seconds)):
            await asyncio.sleep(max(0.0, begin + number / per_s - time.perf_counter()))
            tasks.append(asyncio.create_task(one(next(ask))))
        await asyncio.gather(*tasks)
    return took


async def crowd(address: str, clients: int, seconds: float) -> float:
    """Searches answered a second, each client asking again as soon as it is answered."""
    ask = questions()
    answered = 0
    until = time.perf_counter() + seconds

    async def one(client: httpx.AsyncClient) -> None:
        nonlocal answered
        while time.perf_counter() < until:
            answer = await client.post("/api/search", json={"text": next(ask), "k": 10})
            answer.raise_for_status()
            answered += 1

    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return answered / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--clients", type=int, default=32)
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), given.scenes)
        with serving(store, 32) as (batched, first_s):
            emit(benchmark="serve-first-answer", seconds=round(first_s, 3), items=given.scenes)
            took = asyncio.run(steady(batched, 10, given.seconds))
            p50, p99 = np.percentile(took, [50, 99])
            emit(
                benchmark="serve-words-10-per-s",
                p50_ms=round(float(p50), 2),
                p99_ms=round(float(p99), 2),
                requests=len(took),
            )
            with serving(store, 1) as (single, _):
                rates: dict[str, list[float]] = {"batched": [], "unbatched": []}
                for _ in range(_TURNS):
                    for name, address in (("batched", batched), ("unbatched", single)):
                        found = asyncio.run(crowd(address, given.clients, given.seconds / 2))
                        rates[name].append(found)
        batched_rate, single_rate = (float(np.median(rates[n])) for n in rates)
        emit(
            benchmark="serve-throughput",
            clients=given.clients,
            batched_per_s=round(batched_rate, 1),
            unbatched_per_s=round(single_rate, 1),
            ratio=round(batched_rate / single_rate, 2),
        )


if __name__ == "__main__":
    main()
