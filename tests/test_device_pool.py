"""`--devices`: the same bytes whoever computes them, and one bad input costs nobody but itself."""

import hashlib
import json
import os
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.encoding import EncodeOptions, encode, model_pool
from retrieval_engine.encoding.device_pool import DevicePool, open_devices
from retrieval_engine.encoding.places import PRELOAD
from retrieval_engine.errors import EncoderError, FingerprintMismatch, UsageError
from retrieval_engine.machine import devices_of
from retrieval_engine.models import open_encoder
from retrieval_engine.progress import Silent
from retrieval_engine.store import Store, open_store
from retrieval_engine.testing.images import jpeg
from retrieval_engine.workers import Failed
from retrieval_engine.workers.supervised import Supervised
from tests import fragile_encoder, tiny
from tests.children import begin, vlre
from tests.test_processes import _descendants, _is_running, _wait

OPTIONS = EncodeOptions(part_rows=16, batch_size=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_blip(tmp_path_factory.mktemp("blip")))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(24):
        (folder / f"{i:02}.jpg").write_bytes(jpeg(i))
        (folder / f"{i:02}.txt").write_text(f"a dog {i}\na cat on grass\n")
    (folder / "07.jpg").write_bytes(b"no picture")
    return folder


def shards(store: Path) -> dict[str, str]:
    """sha256 of every shard, as the files are and as the manifest has them."""
    opened = open_store(store)
    assert opened.verify() == []
    listed = {file.name: file.sha256 for part in opened.manifest.parts for file in part.files}
    found = {path.name: path.read_bytes() for path in store.glob("shards/*")}
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
    return listed


def vectors(store: Store) -> dict[str, np.ndarray]:
    gallery = store.gallery()
    return dict(zip(gallery.ids, gallery.images("itc", np.float32), strict=True))


class Killer(threading.Thread):
    """Kills processes of a pool with signal 9 while batches wait: all, then one that is new."""

    def __init__(self, pool: DevicePool) -> None:
        super().__init__(daemon=True)
        self.pool = pool
        self.killed: list[int] = []

    def run(self) -> None:
        while not any(tally.images for tally in self.pool.tallies):
            time.sleep(0.001)
        self.kill(self.pids())
        while not (new := [pid for pid in self.pids() if pid not in self.killed]):
            time.sleep(0.001)
        self.kill(new[:1])

    def pids(self) -> list[int]:
        found = [device.process.pid for device in self.pool.devices]
        return [pid for pid in found if pid is not None]

    def kill(self, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            self.killed.append(pid)


def test_the_store_has_the_same_bytes_whoever_computes_it(
    tmp_path: Path, pictures: Path, checkpoint: str
) -> None:
    open_model = partial(open_encoder, checkpoint, dtype="float32")
    here = encode(
        f"folder:{pictures}", tmp_path / "here", encoder=open_model(device="cpu"), options=OPTIONS
    )
    expected = shards(tmp_path / "here")
    assert len(expected) == 6
    slow = partial(fragile_encoder.open_slow, checkpoint)
    for devices, kills in (("cpu:1", (False,)), ("cpu:2", (False, True))):
        with open_devices(devices_of(devices), slow) as pool:
            for kill in kills:
                store, killer = tmp_path / f"{devices}-{kill}", Killer(pool)
                if kill:
                    for device in pool.devices:
                        device.tally.images = 0
                    killer.start()
                report = encode(f"folder:{pictures}", store, encoder=pool, options=OPTIONS)
                assert len(killer.killed) == 3 * kill
                assert shards(store) == expected
                assert (report.images, report.captions) == (here.images, here.captions)
                assert [f.item_id for f in report.failures] == ["07.jpg"]
                assert sum(tally.images for tally in report.devices) == 23
                assert (sum(tally.restarts for tally in report.devices) > 0) is kill
                assert report.read_seconds > 0 < report.decode_seconds
                assert report.model_seconds > 0 < report.transfer_seconds


def test_what_kills_spoils_or_raises_is_in_the_ledger_alone(
    tmp_path: Path, pictures: Path, checkpoint: str
) -> None:
    clean, few = tmp_path / "clean", EncodeOptions(part_rows=4, batch_size=2)
    encoder = open_encoder(checkpoint, device="cpu", dtype="float32")
    encode(f"folder:{pictures}", clean, encoder=encoder, options=few)
    fragile_encoder.save(pictures / "09-raises.png", fragile_encoder.RAISES)
    fragile_encoder.save(pictures / "09-spoils.png", fragile_encoder.SPOILS)
    (pictures / "21.txt").write_text(f"a {fragile_encoder.DEADLY} dog\na cat on grass\n")
    open_model = partial(fragile_encoder.open_fragile, checkpoint)
    store = tmp_path / "store"
    with open_devices(devices_of("cpu:2"), open_model) as pool:
        report = encode(f"folder:{pictures}", store, encoder=pool, options=few)
    reasons = {failure.item_id: failure.reason for failure in open_store(store).failures()}
    assert set(reasons) == {"07.jpg", "09-raises.png", "09-spoils.png", "21.jpg"}
    assert "illegal memory access" in reasons["09-raises.png"]
    assert "NaN" in reasons["09-spoils.png"]
    assert "died" in reasons["21.jpg"]
    assert report.images.failed == 4
    found, expected = vectors(open_store(store)), vectors(open_store(clean))
    del expected["21.jpg"]
    assert list(found) == list(expected)
    for name, vector in expected.items():
        np.testing.assert_allclose(found[name], vector, atol=1e-3)
    assert open_store(store).verify() == []


def test_a_process_that_hangs_is_replaced(tmp_path: Path, checkpoint: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
    fragile_encoder.save(folder / "z-hangs.png", fragile_encoder.HANGS)
    open_model = partial(fragile_encoder.open_fragile, checkpoint)
    with open_devices(["cpu"], open_model, least_s=0.3) as pool:
        report = encode(f"folder:{folder}", tmp_path / "store", encoder=pool, options=OPTIONS)
    assert report.images.encoded == 4
    [failure] = report.failures
    assert failure.item_id == "z-hangs.png"
    assert "did not answer" in failure.reason


def test_a_model_that_always_fails_ends_the_run(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_pool, "_MOST_AT_FIRST", 4)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        fragile_encoder.save(folder / f"{i}.png", fragile_encoder.RAISES)
        (folder / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes() + bytes([i]))
    open_model = partial(fragile_encoder.open_fragile, checkpoint)
    with (
        open_devices(["cpu"], open_model) as pool,
        pytest.raises(EncoderError, match=r"no device is left.*illegal memory access"),
    ):
        encode(f"folder:{folder}", tmp_path / "store", encoder=pool)


def test_a_device_that_is_lost_leaves_its_work_to_others(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_pool, "_MOST_UNOPENED", 1)

    class Heard(Silent):
        lines: ClassVar[list[str]] = []

        def say(self, line: str) -> None:
            self.lines.append(line)

    model = str(tiny.save_blip(tmp_path / "model"))
    with open_devices(["cpu", "cpu"], partial(fragile_encoder.open_twice, model)) as pool:
        os.kill(Killer(pool).pids()[0], signal.SIGKILL)
        report = encode(
            f"folder:{pictures}",
            tmp_path / "store",
            encoder=pool,
            options=OPTIONS,
            progress=Heard(),
        )
    assert Heard.lines == ["device cpu is given up: the card has fallen off the bus"]
    assert (report.images.encoded, report.images.failed) == (23, 1)
    assert [tally.images for tally in report.devices] == [0, 23]


@pytest.mark.whole
def test_what_does_not_fit_is_halved_for_good(tmp_path: Path, pictures: Path) -> None:
    checkpoint = tiny.save_blip(tmp_path / "model")
    with open_devices(["cpu"], partial(fragile_encoder.open_small, str(checkpoint), 2)) as pool:
        report = encode(f"folder:{pictures}", tmp_path / "store", encoder=pool, options=OPTIONS)
    assert (report.images.encoded, report.images.failed) == (23, 1)
    tried = list(map(int, (checkpoint / "tried").read_text().split()))
    assert tried[:5] == [4, 4, 2, 2, 4]
    assert set(tried[5:]) <= {1, 2}, "what did not fit is not tried again and again"


def test_other_weights_are_never_mixed_in(tmp_path: Path, pictures: Path, checkpoint: str) -> None:
    first = tiny.save_blip(tmp_path / "first")
    other = tiny.save_blip(tmp_path / "other", seed=9)
    open_model = partial(fragile_encoder.open_another, f"{first},{other}")
    with open_devices(["cpu"], open_model) as pool:
        os.kill(Killer(pool).pids()[0], signal.SIGKILL)
        with pytest.raises(FingerprintMismatch, match="what device cpu computes"):
            encode(f"folder:{pictures}", tmp_path / "store", encoder=pool, options=OPTIONS)


def test_no_process_outlives_a_killed_parent(tmp_path: Path, checkpoint: str) -> None:
    store, others, workers = tmp_path / "store", _descendants(os.getpid()), set[int]()
    options = ("--model", checkpoint, "--store", store, "--shard-rows", 16)
    run = begin(vlre("encode", "scenes:20000", "--devices", "cpu:2", *options))

    def committed() -> bool:
        if not list(store.glob("shards/*.parquet")):
            return False
        workers.update(_descendants(os.getpid()) - others - {run.process})
        return True

    ended = run.wait(kill_when=committed)
    assert ended.code == -signal.SIGKILL, ended.output
    assert len(workers) >= 2
    _wait("end of the workers", lambda: not any(map(_is_running, workers)), 30)
    assert open_store(store).verify() == []


def test_the_command_tells_what_each_device_did(
    tmp_path: Path, pictures: Path, checkpoint: str
) -> None:
    command = ["encode", str(pictures), "--model", checkpoint, "--store", str(tmp_path / "store")]
    dry = CliRunner().invoke(main, [*command, "--dry-run", "--json"])
    assert dry.exit_code == 0, dry.output
    estimate = json.loads(dry.stdout)
    assert (estimate["items"], estimate["sampled"], estimate["failed"]) == (24, 24, 1)
    assert estimate["seconds"] > 0
    nothing = CliRunner().invoke(main, [*command, "--dry-run", "--split", "none"])
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert "holds no items" in nothing.stderr
    assert not (tmp_path / "store").exists()
    result = CliRunner().invoke(main, [*command, "--devices", "cpu:2"])
    assert result.exit_code == 3, result.output
    assert result.stdout.count("\ncpu ") == 2
    assert "spent     read" in result.stdout
    size = sum(p.stat().st_size for p in (tmp_path / "store").rglob("*") if p.is_file())
    assert estimate["bytes"] == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("text", ["tpu", "", "cpu:0", "cuda:x", "cpu:-1", "cuda:0,,cpu"])
def test_what_devices_there_are_is_told(text: str) -> None:
    with pytest.raises(UsageError, match=r"all, cuda:0, cuda:1, …, cpu, and cpu:2"):
        devices_of(text)


def test_devices_have_torch_s_names() -> None:
    assert devices_of("cpu:2") == ["cpu", "cpu"]
    assert devices_of("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    assert devices_of("cuda,cpu") == ["cuda:0", "cpu"]
    count = torch.cuda.device_count()
    assert devices_of("all") == [f"cuda:{i}" for i in range(count)] or ["cpu"]


def test_what_a_process_cannot_open_is_told_in_a_line(tmp_path: Path) -> None:
    command = ["encode", "scenes:3", "--model", "no-such-model", "--store", str(tmp_path / "store")]
    result = CliRunner().invoke(main, [*command, "--devices", "cpu:2"])
    assert result.exit_code == 1
    assert "no checkpoint 'no-such-model'" in result.stderr
    assert not (tmp_path / "store").exists()
    result = CliRunner().invoke(main, [*command, "--devices", "tpu"])
    assert result.exit_code == 2
    assert "--devices names 'tpu'" in result.stderr


@pytest.mark.gpu
def test_every_gpu_there_is_encodes(tmp_path: Path, pictures: Path) -> None:
    open_model = partial(open_encoder, "vlre-tiny", dtype="float32")
    with open_devices(devices_of("all"), open_model) as pool:
        report = encode(f"folder:{pictures}", tmp_path / "gpu", encoder=pool, options=OPTIONS)
    assert [tally.device for tally in report.devices] == devices_of("all")
    assert sum(tally.images for tally in report.devices) == 23
    encode(f"folder:{pictures}", tmp_path / "cpu", encoder=open_model(device="cpu"))
    found, expected = vectors(open_store(tmp_path / "gpu")), vectors(open_store(tmp_path / "cpu"))
    for name, vector in expected.items():
        np.testing.assert_allclose(found[name], vector, atol=2e-3)


def opened_here() -> "tuple[int, type[bytes]]":
    return os.getpid(), bytes


def test_a_supervised_process_answers_raises_dies_and_begins_anew() -> None:
    process: Supervised[int, int, bytes] = Supervised(opened_here, preload=PRELOAD)
    seen = set()
    try:
        for _ in range(2):
            process.start()
            seen.add(process.opened())
            assert process.call(3, 60) == bytes(3)
            failed = process.call(-1, 60)
            assert isinstance(failed, Failed)
            assert "negative count" in failed.reason
            assert process.pid is None
    finally:
        process.end()
    assert len(seen) == 2
    assert os.getpid() not in seen


@pytest.mark.whole
def test_captions_and_matches_are_the_same_on_devices(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    options = EncodeOptions(features=("itc", "tokens"))
    encode("scenes:10?seed=3", store, encoder="vlre-tiny", options=options)

    def answers(*line: str) -> list[str]:
        ended = CliRunner().invoke(main, [*line, "--store", str(store), "--json"])
        assert ended.exit_code == 0, ended.output
        timeless = re.sub(r'"seconds": [\d.]+', "", ended.stdout)
        return timeless.splitlines()

    for line in (
        ("caption", "--limit", "2", "--num-captions", "2", "--rank"),
        ("eval", "--recall", "--rerank", "4"),
    ):
        alone = answers(*line)
        capfd.readouterr()
        assert answers(*line, "--devices", "cpu:1") == alone
        assert "Warning" not in capfd.readouterr().err  # of the processes
