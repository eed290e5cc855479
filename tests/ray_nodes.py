"""A real Ray cluster of several nodes on this machine, which listens on the loopback alone."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from retrieval_engine.workers.ray_cluster import _import_ray, _loopback
from tests.test_processes import _descendants


@contextmanager
def ray_nodes(count: int, **head: Any) -> Iterator[Any]:
    """A head without CPUs, and so many nodes of one CPU each; `cluster.worker_nodes` has them.

    Args:
        count: of the nodes beside the head.
        head: more of `ray.cluster_utils.Cluster.add_node` for the head.
    """
    _import_ray()
    with _loopback():
        cluster = _started(count, head) or _started(count, head)
        if cluster is None:
            pytest.skip("Ray itself starts no node on this machine within a minute")
        try:
            yield cluster
        finally:
            cluster.shutdown()


def _started(count: int, head: dict[str, Any]) -> Any:
    """A cluster, or None where its nodes do not come up in time."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    before = set(_descendants(os.getpid()))
    try:
        add_node(cluster, num_cpus=0, **head)
        for _ in range(count):
            add_node(cluster, wait=False)
        cluster.wait_for_nodes(timeout=90)
    except BaseException as error:
        cluster.shutdown()
        for process in set(_descendants(os.getpid())) - before:  # of a node that never was one
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if "timed out" in str(error) or isinstance(error, TimeoutError):
            return None  # the machine is busy: Ray waits for 30 s alone
        raise
    return cluster


def add_node(cluster: Any, num_cpus: int = 1, **how: Any) -> Any:
    """One more node."""
    return cluster.add_node(
        num_cpus=num_cpus,
        node_ip_address="127.0.0.1",
        object_store_memory=100 << 20,
        include_dashboard=False,
        **how,
    )


def kill_node(cluster: Any, node: Any) -> None:
    """Kill all of its processes with signal 9, as a machine without current does."""
    [raylet] = node.all_processes["raylet"]
    for process in (raylet.process.pid, *_descendants(raylet.process.pid)):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def start_node_after(cluster: Any, other: threading.Thread) -> None:
    """One more node as soon as a thread has ended; from a thread that stays, for it ends with that."""

    def start() -> None:
        other.join()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ray._private.utils.set_sigterm_handler", lambda handler: None)
            add_node(cluster)
        threading.Event().wait()

    threading.Thread(target=start, daemon=True).start()
