"""Runs the application on a port: in front, or in a thread for tests and notebooks."""

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from retrieval_engine.engine import Engine
from retrieval_engine.errors import VlreError
from retrieval_engine.serve.app import create_app
from retrieval_engine.serve.guard import Guard
from retrieval_engine.serve.log import log_lines
from retrieval_engine.serve.settings import ServeSettings
from retrieval_engine.serve.turns import ACCEPTED_AT_ONCE, Turns

_HEAD_BYTES = 32 << 10
_GRACE_S = 30
_MOST_UNACCEPTED = 4096
_GO_FIRST = (b"GET /healthz ", b"GET /readyz ")


def run_server(engine: Engine, settings: ServeSettings) -> None:
    """Serve until the process is told to end; what was asked by then is answered first.

    Raises:
        VlreError: the address cannot be listened on.
        KeyboardInterrupt: it was interrupted.
    """
    with listening(settings) as listener:
        log_lines()
        logging.getLogger("vlre.server").info("listening on %s", address_of(settings, listener))
        server_of(engine, settings).run(sockets=[listener])
        logging.shutdown()


@contextmanager
def running(engine: Engine, settings: ServeSettings) -> Iterator[str]:
    """A server in a thread of this process, for as long as the block runs.

    Yields:
        Its address, `http://127.0.0.1:PORT`.

    Raises:
        VlreError: the address cannot be listened on.
    """
    with listening(settings) as listener:
        server = server_of(engine, settings)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="vlre-serve"
        )
        thread.start()
        try:
            yield address_of(settings, listener)
        finally:
            server.should_exit = True
            thread.join()


def server_of(engine: Engine, settings: ServeSettings) -> uvicorn.Server:
    """A server that does not run yet."""
    app, turns = create_app(engine, settings), Turns()
    given = {"head_s": settings.timeout_s, "turns": turns, "guard": app}
    config = uvicorn.Config(
        app,
        http=type("Protocol", (_Patient,), given),
        loop=turns.loop,  # type: ignore[arg-type]
        backlog=ACCEPTED_AT_ONCE,  # as asyncio understands it; `_Fair` sets what the system keeps
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_GRACE_S,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    return _Fair(config, turns)


class _Fair(uvicorn.Server):
    """A server that takes new connections in each turn of its loop, and few at once."""

    def __init__(self, config: uvicorn.Config, turns: Turns) -> None:
        super().__init__(config)
        self._turns = turns

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_MOST_UNACCEPTED)
        files = self._turns.get_map().values()  # listeners, and what other threads wake the loop by
        self._turns.first.update(key.fd for key in files)


@contextmanager
def listening(settings: ServeSettings) -> Iterator[socket.socket]:
    """A socket that listens where the settings say.

    Raises:
        VlreError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise VlreError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
                hint="another `port` may be free; `port=0` takes any",
            ) from error
        listener.listen(_MOST_UNACCEPTED)
        yield listener


def address_of(settings: ServeSettings, listener: socket.socket) -> str:
    """Where a socket listens, for a browser."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"


class _Patient(H11Protocol):
    """Closes a connection on which no whole head of a request came in time."""

    head_s = 20.0
    turns: Turns
    guard: Guard
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        has_begun = bool(self.cycle)  # None before the first request, whatever its type says
        is_idle = not has_begun or self.cycle.response_complete
        is_idle = is_idle and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if is_idle and (answer := self.guard.refused_at_once(data, self.turns.is_behind)):
            self._unset_keepalive_if_required()
            self.transport.write(answer)
            self._wait_for_head()
            return
        if data.startswith(_GO_FIRST):
            self.turns.first.add(self.transport.get_extra_info("socket").fileno())
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        if self._head_timer:
            self._head_timer.cancel()

    def on_response_complete(self) -> None:
        """The next request may come."""
        super().on_response_complete()
        self._wait_for_head()

    def _wait_for_head(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(self.head_s, self._end_if_waiting)

    def _end_if_waiting(self) -> None:
        has_begun = bool(self.cycle)
        if self.turns.is_behind:  # the head may be there, and nobody has come to read it
            self._wait_for_head()
        elif not has_begun or self.cycle.response_complete:
            self.transport.close()


class _Joined:
    """A transport that sends at once what is written in one turn of the loop.

    The head and the body of an answer are then one system call. Each call gives the interpreter
    away to a model's thread at work, and waits until it comes back.

    Args:
        transport: what sends.
        loop: it runs in.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """See `asyncio.WriteTransport`."""
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        """See `asyncio.BaseTransport`."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))
