"""A Ray cluster: joined, or started on this machine.

Where an actor runs is Ray's to decide. A cluster on this machine is started where none is named; it
listens on the loopback alone, and ends with whoever started it, however that ended.
"""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from retrieval_engine.errors import ClusterFailure, MissingExtra, UsageError, one_line
from retrieval_engine.workers import Input, Output, Word
from retrieval_engine.workers.ray_actor import Actor

HERE = "ray"
_REACH_S = 5.0
_CLIENT = "ray://"
# How HTTP/2, which Ray speaks, begins, and an empty frame of settings; the answer has its own.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


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
    host, port = _host_and_port(named) if named else ("", 0)
    ray = _import_ray()
    if ray.is_initialized():
        yield Cluster(ray, can_grow=True)
        return
    place = "" if named else tempfile.mkdtemp(prefix="vlre-ray-", dir=_short_folder())
    try:
        if named:
            _look(named, host, port)
            _show_token()
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


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise UsageError(
            f"`on` is {address!r}; known: ray, HOST:PORT from a node of the cluster, and "
            "ray://HOST:PORT from anywhere"
        )
    return host.strip("[]"), int(port)


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


def _look(address: str, host: str, port: int) -> None:
    """Whether anything of Ray's kind answers; Ray itself would ask for minutes.

    Raises:
        ClusterFailure: nothing does.
    """
    try:
        with socket.create_connection((host, port), timeout=_REACH_S) as connection:
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except OSError as error:
        raise ClusterFailure(
            f"no Ray cluster answers at {address}: {one_line(error)}", hint=_how_to_reach(address)
        ) from error
    if answer[3:4] != b"\x04":
        raise ClusterFailure(
            f"what answers at {address} is no Ray cluster", hint=_how_to_reach(address)
        )


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
        if "ersion mismatch" in str(error):
            import platform

            said = (
                f"another version runs there than Ray {ray.__version__} on Python "
                f"{platform.python_version()}, which are here: {said}"
            )
        hint = (
            "a cluster that asks for a token takes RAY_AUTH_TOKEN's, or that of ~/.ray/auth_token"
        )
        raise ClusterFailure(f"cannot join the Ray cluster {where}: {said}", hint=hint) from error


def _show_token() -> None:
    """Have the token of this machine shown, if there is one; else a cluster that asks refuses."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    with suppress(ImportError):  # before 2.53 there are none
        from ray._private.authentication import authentication_token_setup as tokens

        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


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
