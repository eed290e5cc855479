"""A process of this machine that answers one call after another, and is begun anew when it is lost.

For work that must open something large before its first call, such as a model; see `Keeper`.
"""

import multiprocessing
import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Generic

from retrieval_engine.workers import Failed, Input, Output, Word, attempt, portable
from retrieval_engine.workers.parent import end_with_parent, signals_kept

_GONE = (EOFError, OSError)  # what a connection says whose other side is dead


class Supervised(Generic[Word, Input, Output]):
    """See `Keeper`.

    Args:
        begin: opens what the calls need, in the process; gives a word about it, and what answers
            the calls. It travels, as all values do.
        preload: modules that every such process needs. Where the system can fork, they are imported
            once, in a process from which the others are forked, and a new one is there at once.
    """

    def __init__(
        self,
        begin: Callable[[], tuple[Word, Callable[[Input], Output]]],
        *,
        preload: Sequence[str] = (),
    ) -> None:
        self._begin = begin
        self._preload = list(preload)
        self._process: Any = None
        self._connection: Connection
        self._lock = threading.Lock()
        self._retired = False

    @property
    def pid(self) -> int | None:
        """See `Keeper`."""
        return None if self._process is None else self._process.pid

    @property
    def where(self) -> str:
        """See `Keeper`."""
        return ""

    @property
    def is_ready(self) -> bool:
        """See `Keeper`; this machine has a place for every process."""
        return True

    def start(self) -> None:
        """See `Keeper`."""
        with self._lock:
            if self._process is not None or self._retired:
                return
            methods = multiprocessing.get_all_start_methods()
            can_fork = "forkserver" in methods and self._preload
            context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
            context.set_forkserver_preload(self._preload)
            self._connection, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(self._begin, theirs), daemon=True)
            with signals_kept():
                process.start()
            theirs.close()  # so that its death closes the connection
            self._process = process

    def opened(self, within_s: float | None = None) -> Word | Failed:
        """See `Keeper`."""
        answer: Word | Failed = self._exchange((), within_s)
        return answer

    def call(self, value: Input, within_s: float) -> Output | Failed:
        """See `Keeper`."""
        answer: Output | Failed = self._exchange((value,), within_s)
        return answer

    def retire(self) -> None:
        """See `Keeper`."""
        with self._lock:
            self._retired = True
            if self._process is not None:
                self._process.kill()

    def end(self) -> None:
        """See `Keeper`."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
            self._connection.close()

    def _exchange(self, values: Sequence[Any], within_s: float | None) -> Any:
        if (process := self._process) is None:
            return Failed(error=None, reason="there is no process any more")
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        # A process that hangs may not even read what it is sent: the clock is another thread's.
        timer = threading.Timer(within_s or 0, give_up)
        timer.daemon = True
        if within_s is not None:
            timer.start()
        try:
            for value in values:
                _send(self._connection, value)
            answer = _receive(self._connection)
        except _GONE:
            reason = "its process died (out of memory?)"
            if late.is_set():
                reason = f"its process did not answer within {within_s:.0f} s"
            answer = Failed(error=None, reason=reason)
        finally:
            timer.cancel()
        if isinstance(answer, Failed):
            self.end()
        return answer


def _serve(begin: Callable[[], tuple[Any, Callable[[Any], Any]]], connection: Connection) -> None:
    """What the process does until nobody calls any more."""
    end_with_parent()
    opened = attempt(lambda _: begin(), None)
    with suppress(*_GONE):
        if isinstance(opened, Failed):
            _send(connection, portable(opened))
            return
        word, answer = opened
        _send(connection, word)
        while True:
            result = attempt(answer, _receive(connection))
            _send(connection, portable(result) if isinstance(result, Failed) else result)


def _send(connection: Connection, value: Any) -> None:
    """Send a value; arrays go as they lie in memory, three to five times as fast as pickled."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    connection.send((data, len(buffers)))
    for buffer in buffers:
        connection.send_bytes(buffer.raw())


def _receive(connection: Connection) -> Any:
    data, count = connection.recv()
    return pickle.loads(data, buffers=[connection.recv_bytes() for _ in range(count)])
