"""Where the processes of a pool run: on this machine, or as actors on a Ray cluster."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from retrieval_engine.encoding.device import Device, Open, begin
from retrieval_engine.errors import ClusterFailure, UsageError
from retrieval_engine.machine import devices_of, threads_wanted
from retrieval_engine.workers.supervised import Supervised

if TYPE_CHECKING:
    from retrieval_engine.workers.ray_cluster import Cluster

# With torch and transformers they take seconds, which each process would spend anew.
PRELOAD = ("retrieval_engine.encoding.device_pool", "retrieval_engine.models.blip.encoder")


@contextmanager
def placed(
    devices: Sequence[str] | str, open_models: Open, *, on: str = "", least_s: float = 60.0
) -> Iterator[list[Device]]:
    """Devices whose processes have not begun yet.

    Args:
        devices: names as torch has them, one for each process, or what `machine.devices_of` reads.
            On a cluster `all` (each GPU, or each CPU where there is none; the default there),
            `gpu:4`, `cpu:8`, and these with commas between them.
        open_models: opens what each of them needs.
        on: empty for this machine; else a cluster, see `ray_cluster.joined`.
        least_s: see `Device`.

    Raises:
        UsageError: something else is named.
        ClusterFailure: the cluster cannot be reached.
    """
    # How many threads share a sum is the same everywhere, as are its last bits.
    threads = threads_wanted(1)
    if not on:
        names = devices_of(devices) if isinstance(devices, str) else devices
        # A CUDA context does not survive a fork: those processes begin from nothing.
        yield [
            Device(
                name,
                Supervised(
                    partial(begin, open_models, name, threads),
                    preload=PRELOAD if name == "cpu" else (),
                ),
                least_s=least_s,
            )
            for name in names
        ]
        return
    from retrieval_engine.workers.ray_cluster import joined

    asked = asked_of_cluster(devices if isinstance(devices, str) else ",".join(devices))
    cpus = threads * sum(kind == "cpu" for kind in asked)
    with joined(on, cpus=cpus) as cluster:
        has = int(cluster.resources().get("GPU", 0))
        if (wanted := asked.count("gpu")) > has and not cluster.can_grow:
            raise ClusterFailure(
                f"`devices` asks for {wanted} GPUs, and this machine has {has or 'none'}",
                hint="ask for `devices='cpu:2'`, or name a cluster that has some",
            )
        yield [
            _on_cluster(cluster, kind, open_models, threads, least_s)
            for kind in asked or _all_of(cluster, threads)
        ]


def asked_of_cluster(text: str) -> list[str]:
    """`gpu` or `cpu` for each process that is asked for; none for `all`.

    Raises:
        UsageError: `text` is no such list.
    """
    if text.strip() in ("", "all"):
        return []
    found: list[str] = []
    for part in text.split(","):
        kind, _, number = part.strip().partition(":")
        count = int(number or 1) if (number or "1").isdecimal() else 0
        if kind not in ("cpu", "gpu") or not count:
            raise UsageError(
                f"`devices` names {part.strip()!r}; on a cluster, where GPUs have no numbers, known "
                "are: all, gpu:4 for four models with a GPU each, cpu:8, separated by commas"
            )
        found += [kind] * count
    return found


def _all_of(cluster: "Cluster", threads: int) -> list[str]:
    has = cluster.resources()
    gpus, cpus = int(has.get("GPU", 0)), int(has.get("CPU", 0))
    found = ["gpu"] * gpus or ["cpu"] * (cpus // threads)
    if not found:
        raise ClusterFailure(
            f"the cluster has no GPU and {cpus} CPUs, and a model takes {threads} of them",
            hint="`devices='gpu:1'` waits for one that is still to come",
        )
    return found


def _on_cluster(
    cluster: "Cluster", kind: str, open_models: Open, threads: int, least_s: float
) -> Device:
    # Ray shows a process the GPUs that it has given it, and counts them from 0.
    name = "cpu" if kind == "cpu" else "cuda:0"
    needs = {"cpus": threads} if kind == "cpu" else {"gpus": 1}
    process = cluster.keeper(partial(begin, open_models, name, threads), **needs)
    return Device(name, process, least_s=least_s)
