"""What a server does when it is asked more than it can, and while its store grows.

    python -m benchmarks.serve_stress
    python -m benchmarks.serve_stress --scenes 50 --seconds 3

JSON lines: questions at four times the rate that it answers, each of which must get its right answer
or be refused, and the health and memory meanwhile; then searches while `vlre encode` adds scenes.
"""

import argparse
import asyncio
import collections
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import httpx

from benchmarks.report import emit
from benchmarks.serve import Client, Server, crowd, make_store, questions, serving, vlre, warm

_OVER = 4
_QUESTIONS = 128
_HITS_APART = 0.01  # a text in bfloat16, in this batch or in that


async def overload(
    server: Server, per_s: float, seconds: float, pool: ProcessPoolExecutor
) -> dict[str, float]:
    """What becomes of questions at a rate, asked whether answers come or not."""
    client = Client(server.address)
    texts = list(islice(questions(), _QUESTIONS))
    right = {text: json.loads((await client.ask(text))[1])["hits"] for text in texts}
    counts = collections.Counter(right=0, refused=0, wrong=0, lost=0)
    memory = [resident_mb(server)]

    async def one(text: str) -> None:
        try:
            status, body = await client.ask(text)
        except (OSError, asyncio.IncompleteReadError):
            counts["lost"] += 1
            return
        if status == 200:
            counts["right" if _same(json.loads(body)["hits"], right[text]) else "wrong"] += 1
        else:
            counts["refused" if status in (429, 503) else f"status {status}"] += 1

    loop = asyncio.get_running_loop()
    watching = loop.run_in_executor(pool, health, server.address, seconds)
    tasks: set[asyncio.Task[None]] = set()
    begin = time.perf_counter()
    for number in range(int(per_s * seconds)):
        await asyncio.sleep(max(0.0, begin + number / per_s - time.perf_counter()))
        tasks.add(asyncio.create_task(one(texts[number % len(texts)])))
        if number % 100 == 0:
            memory.append(resident_mb(server))
    asked_s = time.perf_counter() - begin
    await asyncio.gather(*tasks)
    start = time.perf_counter()
    await client.search("a dog")
    recovered = time.perf_counter() - start
    await client.close()
    return {
        **counts,
        **await watching,
        "asked_per_s": round(len(tasks) / asked_s, 1),
        "answer_after_s": round(recovered, 3),
        "memory_mb": round(memory[0]),
        "most_memory_mb": round(max(memory)),
    }


def health(address: str, seconds: float) -> dict[str, float]:
    """How often a server said for some seconds that it is ill, and how long it thought about it."""
    ill, longest, until = 0, 0.0, time.perf_counter() + seconds
    with httpx.Client(base_url=address, timeout=20) as client:
        while time.perf_counter() < until:
            start = time.perf_counter()
            try:
                ill += client.get("/healthz").status_code != 200
            except httpx.TimeoutException:
                ill += 1
            longest = max(longest, time.perf_counter() - start)
            time.sleep(0.5)
    return {"ill": ill, "longest_health_s": round(longest, 2)}


def _same(found: list[dict[str, float]], right: list[dict[str, float]]) -> bool:
    """Whether these are the right hits; near-equal scores may change places."""
    scores = {hit["id"]: hit["score"] for hit in right}
    lowest = right[-1]["score"] + _HITS_APART
    return len(found) == len(right) and all(
        abs(hit["score"] - scores.get(hit["id"], hit["score"])) < _HITS_APART
        and (hit["id"] in scores or hit["score"] < lowest)
        for hit in found
    )


def resident_mb(server: Server) -> float:
    """Memory of its process; Linux alone tells."""
    pages = int(Path(f"/proc/{server.process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def growing(server: Server, store: Path, added: int, clients: int) -> dict[str, float]:
    """Searches by clients without a pause while `vlre encode` adds scenes to a store."""
    client = Client(server.address)
    ask = questions()
    before = json.loads((await client.ask("a dog"))[1])["items"]
    counts = {"answered": 0, "failed": 0}
    last = {"items": before, "at": 0.0}

    async def one() -> None:
        while last["items"] < before + added:
            status, body = await client.ask(next(ask))
            counts["answered" if status == 200 else "failed"] += 1
            items = json.loads(body)["items"] if status == 200 else 0
            if items > last["items"]:
                last.update(items=items, at=time.time())

    words = ("encode", f"scenes:{added}?seed=9", "--model", "vlre-tiny", "--store", str(store))
    encoding = asyncio.create_task(asyncio.to_thread(vlre, *words))
    await asyncio.gather(encoding, *(one() for _ in range(clients)))
    await client.close()
    written = (store / "manifest.json").stat().st_mtime
    return {**counts, "added": added, "found_after_s": round(last["at"] - written, 2)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--clients", type=int, default=8, help="while the store grows")
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), given.scenes)
        with serving(store) as server:
            warm(server.address)
            answered, took = asyncio.run(crowd(server.address, 64, min(5.0, given.seconds)))
            with ProcessPoolExecutor(1) as pool:  # health is not to wait for the client's own loop
                rate = _OVER * answered / took
                found = asyncio.run(overload(server, rate, given.seconds, pool))
            emit(benchmark="serve-overload", answers_per_s=round(answered / took, 1), **found)
            found = asyncio.run(growing(server, store, given.scenes // 5, given.clients))
            emit(benchmark="serve-growing", items=given.scenes, **found)


if __name__ == "__main__":
    main()
