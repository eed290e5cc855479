"""Encoding on several devices: as fast as one process with all threads, and unmoved by kill -9?

    python -m benchmarks.devices                 vlre-photo on 500x375 JPEG, two cores; 30 kills
    python -m benchmarks.devices --tiny          for a test

One run holds all ways of encoding, alternating: this process with two threads, `cpu:1`, `cpu:2`.
Then processes of a `cpu:2` pool are killed with signal 9 at random moments. Quality beside speed:
whether the shards of all stores are the same bytes, and that no process is left.
"""

import argparse
import hashlib
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from benchmarks.encode import write_pictures
from benchmarks.report import emit
from retrieval_engine.encoding import EncodeOptions, EncodeReport, encode
from retrieval_engine.encoding.device_pool import DevicePool, open_devices
from retrieval_engine.machine import devices_of
from retrieval_engine.models import Encoder, open_encoder

WAYS = ("threads", "cpu:1", "cpu:2")


def digest(store: Path) -> str:
    """sha256 over all shards in their order."""
    data = b"".join(path.read_bytes() for path in sorted(store.glob("shards/*")))
    return hashlib.sha256(data).hexdigest()


class Killer(threading.Thread):
    """Kills a random process of a pool now and then.

    Attributes:
        killed: how many so far.
        seen: every process there was.
    """

    def __init__(self, pool: DevicePool, most: int, seed: int = 11) -> None:
        super().__init__(daemon=True)
        self.pool, self.most, self.rng = pool, most, random.Random(seed)
        self.killed, self.seen, self.over = 0, set[int](), threading.Event()

    def run(self) -> None:
        while self.killed < self.most and not self.over.wait(self.rng.uniform(0.05, 3.5)):
            pids = [pid for device in self.pool.devices if (pid := device.process.pid) is not None]
            self.seen.update(pids)
            with suppress(ProcessLookupError):
                if pids:
                    os.kill(self.rng.choice(pids), signal.SIGKILL)
                    self.killed += 1


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
    """Run, and print one JSON line for speed and one for the kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5, help="0: no speed")
    parser.add_argument("--kills", type=int, default=30, help="0: no kills")
    given = parser.parse_args()
    model = "vlre-tiny" if given.tiny else "vlre-photo"
    images, rounds, kills = (12, 1, 2) if given.tiny else (given.images, given.rounds, given.kills)
    open_model = partial(open_encoder, model, dtype="float32")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "pictures").mkdir()
        write_pictures(root / "pictures", images)
        if rounds:
            speed(root, open_model, rounds)
        if kills:
            survive(root, kills, scenes=48 if given.tiny else 4_000)


def speed(root: Path, open_model: "partial[Encoder]", rounds: int) -> None:
    """Images per second of each way, in turn."""
    options = EncodeOptions(batch_size=16)
    reports: dict[str, list[EncodeReport]] = {way: [] for way in WAYS}
    digests = set()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    here = open_model(device="cpu")
    with (
        open_devices(devices_of("cpu:1"), open_model) as one,
        open_devices(devices_of("cpu:2"), open_model) as two,
    ):
        for number in range(-1, rounds):
            encoders: tuple[Encoder | DevicePool, ...] = (here, one, two)
            for way, encoder in zip(WAYS, encoders, strict=True):
                store = root / f"{way}-{number}"
                report = encode(
                    f"folder:{root / 'pictures'}", store, encoder=encoder, options=options
                )
                digests.add(digest(store))
                if number >= 0:  # the first of each warms up
                    reports[way].append(report)
    torch.set_num_threads(before)
    rates = {way: [r.images.encoded / r.seconds for r in reports[way]] for way in WAYS}
    ratios = [two / one for one, two in zip(rates["threads"], rates["cpu:2"], strict=True)]
    last = reports["cpu:2"][-1]
    emit(
        "devices",
        images=last.images.encoded,
        rounds=rounds,
        images_per_s={way: round(statistics.median(rates[way]), 2) for way in WAYS},
        spread={way: [round(min(rates[way]), 2), round(max(rates[way]), 2)] for way in WAYS},
        ratio_to_threads=round(statistics.median(ratios), 2),
        transfer_share=round(last.transfer_seconds / last.model_seconds, 4),
        same_bytes=len(digests) == 1,
    )


def survive(root: Path, kills: int, scenes: int) -> None:
    """The same store whether or not processes are killed."""
    tiny = partial(open_encoder, "vlre-tiny", dtype="float32")
    options = EncodeOptions(batch_size=8, part_rows=200)
    source = f"scenes:{scenes}?seed=7"
    with open_devices(devices_of("cpu:1"), tiny) as pool:
        encode(source, root / "whole", encoder=pool, options=options)
    with open_devices(devices_of("cpu:2"), tiny) as pool:
        killer = Killer(pool, kills)
        killer.start()
        report = encode(source, root / "killed", encoder=pool, options=options)
        killer.over.set()
        killer.join()
        killer.seen.update(d.process.pid for d in pool.devices if d.process.pid is not None)
    time.sleep(0.2)
    emit(
        "devices-kills",
        scenes=scenes,
        kills=killer.killed,
        restarts=sum(tally.restarts for tally in report.devices),
        seconds=round(report.seconds, 1),
        failed=report.images.failed,
        same_bytes=digest(root / "whole") == digest(root / "killed"),
        processes=len(killer.seen),
        left=sum(map(running, killer.seen)),
    )


if __name__ == "__main__":
    main()
