"""`--on`: models on a real Ray cluster of two nodes, one of which is killed; results are the local ones."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from retrieval_engine.caption import CaptionRequest
from retrieval_engine.encoding import EncodeOptions, encode, model_pool
from retrieval_engine.encoding.device_pool import DevicePool, open_devices
from retrieval_engine.errors import ClusterFailure, MissingExtra, VlreError
from retrieval_engine.evaluate import RecallSettings, evaluate_store
from retrieval_engine.models import open_encoder
from retrieval_engine.progress import Silent
from retrieval_engine.store import open_store
from retrieval_engine.testing.images import jpeg
from retrieval_engine.workers import ray_actor
from retrieval_engine.workers.ray_cluster import joined
from tests import fragile_encoder, tiny
from tests.ray_nodes import kill_node, ray_nodes, start_node_after
from tests.test_caption import GREEDY, captions, folder, model, store
from tests.test_device_pool import shards
from tests.test_processes import _wait

__all__ = ["folder", "model", "store"]  # fixtures
pytestmark = [pytest.mark.service, pytest.mark.filterwarnings("ignore::ResourceWarning")]

OPTIONS = EncodeOptions(part_rows=32, batch_size=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_nodes(2) as found:
        yield found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_blip(tmp_path_factory.mktemp("blip")))


class NodeKiller(threading.Thread):
    """Kills a node as soon as every device that has a place has computed something."""

    def __init__(self, cluster: Any, pool: DevicePool) -> None:
        super().__init__(daemon=True)
        self.cluster, self.killed = cluster, False
        self.devices = [device for device in pool.devices if device.process.is_ready]
        for device in self.devices:
            device.tally.images = 0

    def run(self) -> None:
        until = time.monotonic() + 60
        while not all(device.tally.images for device in self.devices):
            assert time.monotonic() < until, "no images"
            time.sleep(0.001)
        kill_node(self.cluster, next(iter(self.cluster.worker_nodes)))
        self.killed = True


def test_the_store_has_the_same_bytes_when_nodes_are_killed(
    tmp_path: Path, checkpoint: str, cluster: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    source = "scenes:100?seed=3"
    encoder = open_encoder(checkpoint, device="cpu", dtype="float32")
    here = encode(source, tmp_path / "here", encoder=encoder, options=OPTIONS)
    expected = shards(tmp_path / "here")
    slow = partial(fragile_encoder.open_slow, checkpoint)
    with open_devices("all", slow, on=cluster.address) as pool:
        assert len(pool.devices) == 2
        _wait("two devices", lambda: all(d.process.is_ready for d in pool.devices), 60)
        for left in (1, 0):  # then all nodes are gone, and the run waits for one
            killer = NodeKiller(cluster, pool)
            killer.start()
            if not left:
                start_node_after(cluster, killer)
            report = encode(source, tmp_path / f"{left}", encoder=pool, options=OPTIONS)
            assert killer.killed
            assert shards(tmp_path / f"{left}") == expected
            assert (report.images, report.captions) == (here.images, here.captions)
            assert sum(tally.images for tally in report.devices) >= 100
            assert {tally.device for tally in report.devices} == {"cpu@127.0.0.1"}
            assert left or sum(tally.restarts for tally in report.devices) > 0
    assert capfd.readouterr().out == ""


def test_what_kills_or_hangs_is_in_the_ledger_alone(
    tmp_path: Path, checkpoint: str, cluster: Any
) -> None:
    pictures, place = tmp_path / "pictures", tmp_path / "place"
    pictures.mkdir()
    for i in range(3):
        (pictures / f"{i}.jpg").write_bytes(jpeg(i))
    fragile_encoder.save(pictures / "hangs.png", fragile_encoder.HANGS)
    (pictures / "2.txt").write_text(f"a {fragile_encoder.DEADLY} dog\n")
    open_model = partial(fragile_encoder.open_fragile, checkpoint)
    with open_devices("cpu:1", open_model, on=cluster.address, least_s=1.0) as pool:
        report = encode(f"folder:{pictures}", place, encoder=pool, options=OPTIONS)
    reasons = {failure.item_id: failure.reason for failure in open_store(place).failures()}
    assert set(reasons) == {"hangs.png", "2.jpg"}
    assert "did not answer" in reasons["hangs.png"]
    assert "died" in reasons["2.jpg"]
    assert report.devices[0].restarts >= 5
    assert open_store(place).verify() == []


def test_captions_are_those_of_this_machine(
    model: Path,
    folder: Path,
    store: Path,
    cluster: Any,
) -> None:
    common: dict[str, Any] = {
        "model": str(model),
        "options": GREEDY,
        "dtype": "float32",
        "batch_size": 3,
    }
    ways: list[dict[str, Any]] = [
        {"targets": (str(folder),), "rank": True},
        {"store": store, "limit": 5},
    ]
    for how in ways:
        expected, here = captions(CaptionRequest(**common, **how))
        found, there = captions(CaptionRequest(**common, **how, on=cluster.address))
        assert found == expected
        assert (there.captioned, there.encoded) == (here.captioned, here.encoded)


def test_reranked_recall_is_that_of_this_machine(
    tmp_path: Path, checkpoint: str, cluster: Any
) -> None:
    encoder = open_encoder(checkpoint, device="cpu", dtype="float32")
    for features in (("itc", "tokens"), ("itc",)):
        place = tmp_path / str(len(features))
        encode("scenes:24?seed=5", place, encoder=encoder, options=EncodeOptions(features=features))
        settings = RecallSettings(rerank=8, device="cpu")
        here = evaluate_store(open_store(place), settings).to_json()
        there = evaluate_store(open_store(place), replace(settings, on=cluster.address)).to_json()
        for found in (here, there):
            assert isinstance(found["reranked"], dict)
            del found["reranked"]["seconds"], found["seconds"]
        assert here == there


def test_an_interrupted_command_leaves_no_process(tmp_path: Path) -> None:
    line = ["encode", "scenes:5000?seed=3", "--on", "ray", "--devices", "cpu:1"]
    command = [sys.executable, "-c", "from retrieval_engine.cli import main; main()", *line]
    with subprocess.Popen(
        [*command, "--store", str(tmp_path / "store")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        heard = ""
        while "/s (" not in heard:  # it encodes
            heard = process.stderr.readline()
            assert heard, process.wait()
        theirs = psutil.Process(process.pid).children(recursive=True)
        assert any("ray" in " ".join(child.cmdline()) for child in theirs)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read().splitlines()[-1] == "interrupted"
    _, left = psutil.wait_procs(theirs, timeout=30)
    assert not left


def test_a_gpu_that_is_not_here_is_not_waited_for(tmp_path: Path) -> None:
    line = ["encode", "scenes:2", "--on", "ray", "--devices", "gpu:99"]
    command = [sys.executable, "-c", "from retrieval_engine.cli import main; main()", *line]
    ended = subprocess.run(
        [*command, "--store", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    error, hint = ended.stderr.splitlines()[-2:]
    assert error.startswith("Error: --devices asks for 99 GPUs, and this machine has ")
    assert hint.startswith("hint: ask for --devices cpu:2")
    assert not (tmp_path / "store").exists()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match="ray is not installed") as told, joined("ray"):
        pass
    assert "vlre[ray]" in str(told.value.hint)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_where_nothing_answers_it_is_said_at_once(address: str) -> None:
    with (
        pytest.raises(ClusterFailure, match=f"no Ray cluster answers at {address}: "),
        joined(address),
    ):
        pass


def test_what_a_node_lacks_is_told_with_its_address(
    tmp_path: Path, checkpoint: str, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, another version of vlre, memory for a batch, a place."""
    gone = partial(open_encoder, str(tmp_path / "gone"), dtype="float32")
    with (
        pytest.raises(VlreError, match=f"no checkpoint '{tmp_path / 'gone'}'"),
        open_devices("cpu:1", gone, on=cluster.address),
    ):
        pass
    model = partial(open_encoder, checkpoint, dtype="float32")
    with monkeypatch.context() as patch:
        patch.setattr(ray_actor, "__version__", "9.9")
        with (
            pytest.raises(ClusterFailure, match=r"node 127\.0\.0\.1 has vlre .*, and 9\.9 runs"),
            open_devices("cpu:1", model, on=cluster.address),
        ):
            pass
    small = partial(fragile_encoder.open_small, checkpoint, 2)
    with open_devices("cpu:1", small, on=cluster.address) as pool:
        options = EncodeOptions(batch_size=4)
        report = encode("scenes:8", tmp_path / "halved", encoder=pool, options=options)
    assert report.images.encoded == 8

    class Heard(Silent):
        lines: ClassVar[list[str]] = []

        def say(self, line: str) -> None:
            self.lines.append(line)

    monkeypatch.setattr(model_pool, "_TELL_S", 0.2)
    monkeypatch.setattr(model_pool, "_PLACE_S", 1.0)
    with (
        pytest.raises(ClusterFailure, match="no node of the cluster has had room"),
        open_devices("gpu:1", model, on=cluster.address, progress=Heard()),
    ):
        pass
    assert Heard.lines == ["waiting for a place on the cluster, 1 s at most"]
