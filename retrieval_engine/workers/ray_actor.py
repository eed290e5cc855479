"""A process on some node of a Ray cluster, begun anew when it is lost."""

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Generic

from retrieval_engine import __version__
from retrieval_engine.errors import ClusterFailure, one_line
from retrieval_engine.workers import Failed, Input, Output, Word, attempt, portable


class Actor(Generic[Word, Input, Output]):
    """An actor of Ray's as a `Keeper`.

    Args:
        ray: the library, connected.
        begin: see `Supervised`.
        needs: CPUs and GPUs that a node must have free for it.
    """

    def __init__(
        self,
        ray: Any,
        begin: Callable[[], tuple[Word, Callable[[Input], Output]]],
        needs: Mapping[str, float],
    ) -> None:
        self._ray, self._begin = ray, begin
        self._class = ray.remote(max_restarts=0, max_task_retries=0, **needs)(_Opened)
        self._actor: Any = None
        self._opening: Any = None
        self._pid: int | None = None
        self._where = ""
        self._lock = threading.Lock()
        self._retired = False

    @property
    def pid(self) -> int | None:
        """See `Keeper`; none until it is open."""
        return None if self._actor is None else self._pid

    @property
    def where(self) -> str:
        """See `Keeper`; its address, once it was open."""
        return self._where

    @property
    def is_ready(self) -> bool:
        """See `Keeper`; no sooner than a node had a place for it, and it has opened."""
        self.start()
        with self._lock:
            opening = self._opening
        if opening is None:
            return True
        try:
            return bool(self._ray.wait([opening], timeout=0)[0])
        except (self._ray.exceptions.RayError, ConnectionError):
            return True  # asked, it will say what is wrong

    def start(self) -> None:
        """See `Keeper`."""
        with self._lock:
            if self._actor is None and not self._retired:
                self._pid, self._actor = None, self._class.remote(__version__)
                self._opening = self._actor.open.remote(self._begin)

    def opened(self, within_s: float | None = None) -> Word | Failed:
        """See `Keeper`."""
        with self._lock:
            opening = self._opening
        answer = self._answer(opening, within_s)
        if isinstance(answer, Failed):
            return answer
        self._pid, self._where, word = answer
        if isinstance(word, Failed):
            self.end()
        found: Word | Failed = word
        return found

    def call(self, value: Input, within_s: float) -> Output | Failed:
        """See `Keeper`."""
        with self._lock:
            asked = None if self._actor is None else self._actor.call.remote(value)
        answer: Output | Failed = self._answer(asked, within_s)
        if isinstance(answer, Failed):
            self.end()
        return answer

    def retire(self) -> None:
        """See `Keeper`."""
        with self._lock:
            self._retired = True
            self._kill()

    def end(self) -> None:
        """See `Keeper`."""
        with self._lock:
            self._kill()
            self._actor = self._opening = None

    def _kill(self) -> None:
        if self._actor is not None:
            with suppress(Exception):  # it is dead already, or the cluster is
                self._ray.kill(self._actor)

    def _answer(self, asked: Any, within_s: float | None) -> Any:
        if asked is None:
            return Failed(error=None, reason="there is no process any more")
        errors = self._ray.exceptions
        try:
            return self._ray.get(asked, timeout=within_s)
        except errors.GetTimeoutError:
            failed = Failed(error=None, reason=f"its actor did not answer within {within_s:.0f} s")
        except (errors.RayActorError, errors.OutOfMemoryError, errors.ObjectLostError):
            failed = Failed(error=None, reason="its actor or its node died (out of memory?)")
        except (errors.RayError, ConnectionError) as error:
            # An exception of `_Opened` is in `answer`; what comes here kept it from running.
            said = one_line(getattr(error, "cause", None) or error)
            failed = Failed(error=None, reason=f"its node cannot run it: {said}", details=said)
        self.end()
        return failed


class _Opened:
    """What is in the actor's process.

    Args:
        version: of the package where the run is.
    """

    def __init__(self, version: str) -> None:
        self._version = version
        self._call: Callable[[Any], Any]

    def open(self, begin: Callable[[], tuple[Any, Callable[[Any], Any]]]) -> tuple[int, str, Any]:
        """Process, node, and what `begin` says, or the `Failed` it became."""
        import ray

        node = ray.util.get_node_ip_address()
        if self._version != __version__:
            said = f"node {node} has vlre {__version__}, and {self._version} runs here"
            error = ClusterFailure(said, hint="install one version everywhere")
            return os.getpid(), node, Failed(error=error, reason=said, details=said)
        opened = attempt(lambda _: begin(), None)
        if isinstance(opened, Failed):
            return os.getpid(), node, portable(opened)
        word, self._call = opened
        return os.getpid(), node, word

    def call(self, value: Any) -> Any:
        """The answer to one call."""
        result = attempt(self._call, value)
        return portable(result) if isinstance(result, Failed) else result
