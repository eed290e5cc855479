"""Small images kept on disk from one start of the server to the next, for all stores together.

A file is named after the sha256 of the image that it shows, and begins with the sha256 of its own
rest: it is never stale, and one that was cut or spoilt counts as absent. So nothing is synced.
"""

import contextlib
import hashlib
import logging
import os
import re
import threading
from pathlib import Path

from retrieval_engine.durable import partial_of

_KEY = re.compile("[0-9a-f]{64}")
_DIGEST_BYTES = 32
_LEFT = 0.8  # of the limit, when the oldest are thrown out
_LOOK = 0.05  # of the limit written by this process until it looks what others wrote
_log = logging.getLogger(__name__)


class Thumbnails:
    """A bounded folder of small images, which several processes may use at once.

    Args:
        folder: made when it is first needed; where that is impossible nothing is kept.
        most_bytes: of all of them; beyond it the oldest go. 0 keeps nothing.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most = most_bytes
        self._until_look = 0  # bytes to write
        self._turn = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """The small image of an image with this sha256, if it is kept and whole."""
        if not self._most or not _KEY.fullmatch(key):
            return None
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        image = data[_DIGEST_BYTES:]
        return image if data[:_DIGEST_BYTES] == hashlib.sha256(image).digest() else None

    def put(self, key: str, image: bytes) -> None:
        """Keep a small image under the sha256 of the large one."""
        if not self._most or not _KEY.fullmatch(key):
            return
        path = self._path(key)
        partial = partial_of(path)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with partial.open("xb") as file:
                file.write(hashlib.sha256(image).digest() + image)
            os.replace(partial, path)
            self._bound(len(image))
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            _log.warning("small images are not kept in %s from here on: %s", self._folder, error)
            self._most = 0

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key

    def _bound(self, written: int) -> None:
        """Throw out the oldest if there is too much; half-written ones of dead processes too."""
        with self._turn:
            self._until_look -= written
            if self._until_look > 0:
                return
            self._until_look = int(_LOOK * self._most)
            found = []
            for path in self._folder.glob("*/*"):
                try:
                    found.append((path.stat(), path))
                except FileNotFoundError:  # another process threw it out
                    continue
            total = sum(stat.st_size for stat, _ in found)
            if total <= self._most:
                return
            for stat, path in sorted(found, key=lambda each: each[0].st_mtime_ns):
                path.unlink(missing_ok=True)
                total -= stat.st_size
                if total <= _LEFT * self._most:
                    break
