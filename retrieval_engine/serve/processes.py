"""A server for each device, in a process of its own, all behind one port.

They share one socket, and whoever is idle takes the next connection from it. Nothing else is shared
but what is counted: each has its own model, queues, limits of rate, and look-out for changes.
"""

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from retrieval_engine.engine import Engine
from retrieval_engine.machine import usable_cores
from retrieval_engine.serve.log import log_lines
from retrieval_engine.serve.server import address_of, listening, server_of
from retrieval_engine.serve.settings import ServeSettings
from retrieval_engine.workers.parent import end_with_parent

_SILENT_S = 60  # importing torch from a cold disk lets nothing else run
_TOGETHER = "PROMETHEUS_MULTIPROC_DIR"  # as `figures`, which may be imported only when it is set
_log = logging.getLogger("vlre.server")


def run_processes(
    open_engine: Callable[..., Engine], settings: ServeSettings, devices: Sequence[str]
) -> None:
    """Serve until the process is told to end; what was asked by then is answered first.

    A process that dies or hangs is replaced; when this one is killed, all end. The cores are
    divided among them, unless `OMP_NUM_THREADS` says how many threads each has.

    Args:
        open_engine: gives an engine on `device=NAME`; it travels to the processes.
        settings: of each of them.
        devices: one for each process; see `machine.devices_of`.

    Raises:
        VlreError: the address cannot be listened on.
    """
    settings = replace(settings, processes=len(devices))
    with listening(settings) as listener, tempfile.TemporaryDirectory() as folder:
        log_lines()
        os.environ[_TOGETHER] = folder
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // len(devices))))
        where = address_of(settings, listener)
        _log.info("listening on %s, with %s", where, ", ".join(devices))
        _Processes(open_engine, settings, devices, listener).run()
        logging.shutdown()


class _OfDevice(Process):
    """A process of uvicorn's that makes its application itself, on its device."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        made: tuple[Callable[..., Engine], ServeSettings, str],
    ) -> None:
        self._made = made
        super().__init__(config, sockets)

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """See `Process`; here the new process begins."""
        end_with_parent()
        log_lines()
        open_engine, settings, device = self._made
        self._server = server_of(open_engine(device=device), settings)
        super().target(sockets)


class _Processes(Multiprocess):
    """uvicorn's supervisor, over processes that differ in their devices."""

    def __init__(
        self,
        open_engine: Callable[..., Engine],
        settings: ServeSettings,
        devices: Sequence[str],
        listener: socket.socket,
    ) -> None:
        config = uvicorn.Config("", log_config=None, timeout_worker_healthcheck=_SILENT_S)
        super().__init__(config, [listener])
        self._made = [(open_engine, settings, device) for device in devices]

    def init_processes(self) -> None:
        """See `Multiprocess`."""
        self.processes = [self._begin(place) for place in range(len(self._made))]

    def _begin(self, place: int) -> Process:
        process = _OfDevice(self.config, self.sockets, self._made[place])
        process.start()
        return process

    def keep_subprocess_alive(self) -> None:
        """See `Multiprocess`."""
        for place, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process.is_alive(timeout=_SILENT_S):
                continue
            process.kill()
            process.join()
            if process.exitcode == STARTUP_FAILURE:  # another one would fail alike
                _log.error("a process could not begin to serve; all end")
                self.should_exit.set()
                return
            device, code = self._made[place][2], process.exitcode
            _log.warning("the process of %s ended with %s; another takes its place", device, code)
            self.processes[place] = self._begin(place)

    def handle_hup(self) -> None:
        """The terminal has gone."""
        self.handle_term()

    def handle_ttin(self) -> None:
        """One more has no device."""

    def handle_ttou(self) -> None:
        """One less would leave a device idle."""
