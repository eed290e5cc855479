"""How fast does `vlre serve` answer, and what do batches gain?

    python -m benchmarks.serve                    # full: two minutes
    python -m benchmarks.serve --scenes 50 --seconds 2 --clients 8

JSON lines: the first answer after the start of a process; a word search at ten requests a second;
searches a second with many clients, in batches and one by one, taken in turns in one run, and the
milliseconds of a core that the server spends on each, which other jobs disturb less than the
clock. Loopback only; every question is another one, so that nothing is remembered.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np

from benchmarks.report import emit
from retrieval_engine.sources.scenes.describing import captions
from retrieval_engine.sources.scenes.world import world_at
from retrieval_engine.testing.images import jpeg

_TURNS = 3


def questions() -> Iterator[str]:
    """Captions of scenes, short and long, each made another one by a number."""
    known = [sentence for i in range(100) for sentence in captions(world_at(8, i))[1:4]]
    for number, sentence in enumerate(itertools.cycle(known)):
        yield f"{sentence} {number}"


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


@dataclass(frozen=True, slots=True)
class Server:
    """A server in a process of its own.

    Attributes:
        address: where it listens.
        process: its number.
        began: seconds from its start to the first page and the first search, and of a core until then.
    """

    address: str
    process: int
    began: dict[str, float]

    def cpu_s(self) -> float:
        """Seconds of a core that it has taken."""
        return cpu_s(self.process)


def cpu_s(process: int) -> float:
    """Seconds of a core that a process has taken; Linux alone tells."""
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def serving(store: Path, **settings: int) -> Iterator[Server]:
    """A server over a store and the index beside it, with settings besides its address."""
    given = ", ".join(f"{name}={value}" for name, value in settings.items())
    code = (
        "import sys; from retrieval_engine import Engine;"
        "from retrieval_engine.serve import ServeSettings, run_server;"
        f"run_server(Engine(store=sys.argv[1], index=sys.argv[2]), ServeSettings("
        f"port=int(sys.argv[3]), {given}))"
    )
    port = free_port()
    start = time.perf_counter()
    command = [sys.executable, "-c", code, str(store), str(store.with_name("index")), str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=address, timeout=60) as client:
            page = first_answer(lambda: client.get("/")) - start
            words = first_answer(lambda: client.post("/api/search", json={"text": "a"})) - start
        began = {"page_s": round(page, 2), "search_s": round(words, 2)}
        yield Server(address, process.pid, {**began, "cpu_s": cpu_s(process.pid)})
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def first_answer(ask: Callable[[], httpx.Response]) -> float:
    """The time when a question was first answered; asking more often would slow the start."""
    for _ in range(1_200):
        with contextlib.suppress(httpx.ConnectError):
            if ask().status_code == 200:
                return time.perf_counter()
        time.sleep(0.05)
    raise TimeoutError("the server did not answer within a minute")


def warm(address: str) -> None:
    """Ask by an image, which is answered when the whole model is loaded and not only its words."""
    image = {"image": ("a.jpg", jpeg())}
    httpx.post(f"{address}/api/search", files=image, timeout=120).raise_for_status()


class Client:
    """Asks over connections that stay open; httpx costs as much as the server that it shares with.

    Args:
        address: of the server.
    """

    def __init__(self, address: str) -> None:
        place = urlsplit(address)
        self._host, self._port = place.hostname, place.port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def search(self, text: str) -> None:
        """Ask, and read the whole answer.

        Raises:
            RuntimeError: it is none.
        """
        status, body = await self.ask(text)
        if status != 200:
            raise RuntimeError(f"the server answers {status}: {body!r}")

    async def ask(self, text: str) -> tuple[int, bytes]:
        """The status and the body of an answer."""
        idle = self._idle
        while idle and idle[-1][0].at_eof():  # closed by the server meanwhile
            idle.pop()[1].close()
        pair = idle.pop() if idle else await asyncio.open_connection(self._host, self._port)
        reader, writer = pair
        body = json.dumps({"text": text, "k": 10}).encode()
        writer.write(
            b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        answer = await reader.readexactly(int(length[1]) if length else 0)
        if b"connection: close" in head:
            writer.close()
        else:
            idle.append(pair)
        return int(head[9:12]), answer

    async def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()


async def steady(address: str, per_s: float, seconds: float) -> list[float]:
    """Milliseconds of each answer, asked at a steady rate whether answers come or not."""
    took: list[float] = []
    ask = questions()
    client = Client(address)

    async def one(text: str) -> None:
        start = time.perf_counter()
        await client.search(text)
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
    await client.close()
    return took


async def crowd(address: str, clients: int, seconds: float) -> tuple[int, float]:
    """Searches that were answered, and seconds; each client asks again as soon as it is answered."""
    ask = questions()
    answered = 0
    start = time.perf_counter()
    client = Client(address)

    async def one() -> None:
        nonlocal answered
        while time.perf_counter() < start + seconds:
            await client.search(next(ask))
            answered += 1

    await asyncio.gather(*(one() for _ in range(clients)))
    took = time.perf_counter() - start
    await client.close()
    return answered, took


def throughput(batched: Server, single: Server, clients: int, seconds: float) -> dict[str, float]:
    """Searches a second, and milliseconds of a core for each, in batches and one by one."""
    servers = {"batched": batched, "unbatched": single}
    rates: dict[str, list[float]] = {name: [] for name in servers}
    spent: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(_TURNS):
        for name, server in servers.items():
            before = server.cpu_s()
            answered, took = asyncio.run(crowd(server.address, clients, seconds))
            rates[name].append(answered / took)
            spent[name].append(1e3 * (server.cpu_s() - before) / answered)
    found = {f"{name}_per_s": round(float(np.median(rates[name])), 1) for name in servers}
    found |= {f"{name}_cpu_ms": round(float(np.median(spent[name])), 2) for name in servers}
    found["ratio"] = round(found["batched_per_s"] / found["unbatched_per_s"], 2)
    found["cpu_ratio"] = round(found["unbatched_cpu_ms"] / found["batched_cpu_ms"], 2)
    return found


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
        with serving(store, max_waiting=4096) as batched:
            emit(benchmark="serve-first-answer", items=given.scenes, **batched.began)
            warm(batched.address)
            took = asyncio.run(steady(batched.address, 10, given.seconds))
            p50, p99 = np.percentile(took, [50, 99])
            emit(
                benchmark="serve-words-10-per-s",
                p50_ms=round(float(p50), 2),
                p99_ms=round(float(p99), 2),
                requests=len(took),
            )
            with serving(store, max_waiting=4096, max_batch=1) as single:
                warm(single.address)
                found = throughput(batched, single, given.clients, given.seconds / 2)
        emit(benchmark="serve-throughput", clients=given.clients, **found)


if __name__ == "__main__":
    main()
