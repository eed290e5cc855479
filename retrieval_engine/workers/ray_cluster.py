"""A Ray cluster: joined, or started on this machine.

Where an actor runs is Ray's to decide. A cluster on this machine is started where none is named; it
listens on the loopback alone, and ends with whoever started it, however that ended.
"""

import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrieval_engine.errors import ClusterFailure, MissingExtra, UsageError, one_line
from retrieval_engine.workers import Input, Output, Word
from retrieval_engine.workers.ray_actor import Actor

HERE = "ray"
_REACH_S = 5.0
_CLIENT = "ray://"
# What the head of a cluster answers to, by whether it is asked as a client.
_ASKED = {
    True: "/ray.rpc.RayletDriver/ClusterInfo",
    False: "/ray.rpc.NodeInfoGcsService/GetClusterId",
}


@contextmanager
def joined(address: str, *, cpus: int = 0) -> Iterator["Cluster"]:
    """A connection to a cluster; leaving the context ends it, and all actors begun through it.

    A program that is connected already goes on with its own connection.

    Args:
        address: `ray`, the cluster that `RAY_ADDRESS` names, else one that is started on this
            machine; `HOST:PORT`, from a node of the cluster; or `ray://HOST:PORT`, from anywhere.
        cpus: that a cluster which is started here has; 0 for the cores there are.

    Raises:
        MissingExtra: Ray is not installed.
        UsageError: `address` is none of these.
        ClusterFailure: nothing answers there, or it is of another version.
    """
    named = address if address != HERE else os.environ.get("RAY_ADDRESS", "")
    host = _host_and_port(named) if named else ""
    ray = _import_ray()
    if ray.is_initialized():
        yield Cluster(ray, can_grow=True)
        return
    place = "" if named else tempfile.mkdtemp(prefix="vlre-ray-", dir=_short_folder())
    try:
        if named:
            _look(named, host)
            _connect(ray, named, address=named)
        else:
            with _loopback():
                _connect(
                    ray,
                    "on this machine",
                    address="local",
                    num_cpus=cpus or None,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=place,
                )
        yield Cluster(ray, can_grow=bool(named))
    finally:
        ray.shutdown()
        if place:
            shutil.rmtree(place, ignore_errors=True)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtra("ray", "ray") from error
    return ray


def _host_and_port(address: str) -> str:
    found = address.removeprefix(_CLIENT)
    host, _, port = found.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise UsageError(
            f"`on` is {address!r}; known: ray, HOST:PORT from a node of the cluster, and "
            "ray://HOST:PORT from anywhere"
        )
    return found


def _short_folder() -> str | None:
    """Sockets lie in it, whose paths may have 107 bytes."""
    return "/tmp" if Path("/tmp").is_dir() else None


@contextmanager
def _loopback() -> Iterator[None]:
    """Ray takes 127.0.0.1 for a slip, and listens everywhere, but where it knows no clusters."""
    from ray._private import ray_constants

    name, before = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER
    set_before = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(name)
        if set_before is not None:
            os.environ[name] = set_before


def _look(address: str, host: str) -> None:
    """Whether a cluster answers, and lets this machine in; Ray itself would ask for minutes.

    Raises:
        ClusterFailure: it does not.
    """
    import grpc

    # Ray does not go through a proxy either.
    with grpc.insecure_channel(host, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_ASKED[address.startswith(_CLIENT)])(b"", timeout=_REACH_S)
            return
        except grpc.RpcError as error:
            code, said = error.code(), " ".join(str(error.details() or "").split())
    if code is grpc.StatusCode.UNAUTHENTICATED:
        if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
            return
        raise ClusterFailure(
            f"the Ray cluster at {address} asks for a token",
            hint="set RAY_AUTH_MODE=token; the token is RAY_AUTH_TOKEN's, else ~/.ray/auth_token's",
        )
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        said = f"no Ray cluster answers at {address}: {said}"
    else:
        said = f"what answers at {address} is no Ray cluster: {said or code.name.lower()}"
    raise ClusterFailure(said, hint=_how_to_reach(address))


def _how_to_reach(address: str) -> str:
    if address.startswith(_CLIENT):
        return "the head of a cluster listens for clients on port 10001: ray://HOST:10001"
    return "Ray tells the address when it starts; from outside the cluster it is ray://HOST:10001"


def _connect(ray: Any, where: str, **how: Any) -> None:
    # It prints to stdout what befalls any node, and whether or not that was asked for.
    ray._private.worker.print_to_stdstream = lambda *said, **how: None
    try:
        with warnings.catch_warnings(), _sigterm_kept():
            warnings.simplefilter("ignore")
            ray.init(
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                configure_logging=True,
                **how,
            )
    except Exception as error:
        said = one_line(error)
        if said.endswith(":"):  # a traceback of the server's follows
            said += f" {str(error).strip().splitlines()[-1].strip()}"
        if "ersion mismatch" in str(error):
            import platform

            said = (
                f"another version runs there than Ray {ray.__version__} on Python "
                f"{platform.python_version()}, which are here: {said}"
            )
        hint = "if it asks for a token, RAY_AUTH_TOKEN or ~/.ray/auth_token must be the same there"
        raise ClusterFailure(f"cannot join the Ray cluster {where}: {said}", hint=hint) from error


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray would end the program without a word at SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


class Cluster:
    """What a run needs of a cluster; see `joined`.

    Args:
        ray: the library, connected.
        can_grow: see below.

    Attributes:
        can_grow: whether nodes may come; not to one that was started for this run.
    """

    def __init__(self, ray: Any, *, can_grow: bool) -> None:
        self._ray, self.can_grow = ray, can_grow

    def keeper(
        self,
        begin: Callable[[], tuple[Word, Callable[[Input], Output]]],
        *,
        cpus: float = 0,
        gpus: float = 0,
    ) -> "Actor[Word, Input, Output]":
        """A process on some node; see `Keeper`, and `Supervised` for what `begin` is."""
        return Actor(self._ray, begin, {"num_cpus": cpus, "num_gpus": gpus})

    def resources(self) -> Mapping[str, float]:
        """What all nodes together have, as `CPU` and `GPU`."""
        found: Mapping[str, float] = self._ray.cluster_resources()
        return found
