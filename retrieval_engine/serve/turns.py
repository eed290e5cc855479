"""The server's loop takes on a bounded part of what is ready in each of its turns.

asyncio reads every connection on which something came before it goes on with anything else. An
answer needs about six turns of the loop, and with ten thousand clients one turn is seconds long:
whoever asks for the server's health is answered behind all of them, six times.
"""

import asyncio
import itertools
import selectors
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectors import SelectorKey

    from _typeshed import FileDescriptorLike

ACCEPTED_AT_ONCE = 32
_MOST_AT_ONCE = 64
_MANY = 256


class Turns(selectors.DefaultSelector):
    """A selector that gives a bounded number of what is ready, what has waited longest first.

    Attributes:
        first: files that are always among them: listeners, and connections that ask for health.
        is_behind: whether much more was ready than fits into a turn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first: set[int] = set()
        self.is_behind = False
        self._served: dict[int, int] = {}
        self._turn = itertools.count(1)

    def select(self, timeout: float | None = None) -> "list[tuple[SelectorKey, int]]":
        """See `selectors.BaseSelector`; what is left out is still ready at the next call."""
        ready = super().select(timeout)
        self.is_behind = len(ready) > _MANY
        if len(ready) > _MOST_AT_ONCE:
            ready.sort(key=self._since)
            del ready[_MOST_AT_ONCE:]
        turn = next(self._turn)
        self._served.update((key.fd, turn) for key, _ in ready)
        return ready

    def _since(self, found: "tuple[SelectorKey, int]") -> int:
        """The turn in which a file had its last part; one that is new comes soon."""
        fd = found[0].fd
        return -1 if fd in self.first else self._served.get(fd, 0)

    def unregister(self, fileobj: "FileDescriptorLike") -> "SelectorKey":
        """See `selectors.BaseSelector`."""
        key = super().unregister(fileobj)
        self._served.pop(key.fd, None)
        self.first.discard(key.fd)
        return key

    def loop(self) -> asyncio.AbstractEventLoop:
        """A loop that runs by it; on Windows, where it could hold 512 files, the usual one."""
        if sys.platform == "win32":
            return asyncio.ProactorEventLoop()
        return asyncio.SelectorEventLoop(self)
