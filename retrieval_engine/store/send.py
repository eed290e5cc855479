"""Writing a store behind an address: one writer at a time, the manifest last; see `mirror`.

The lock is an object that is made only where there is none (`If-None-Match` on S3) and renewed while
its writer lives. One that was left by a kill gives way at once to the same mirror, whose own lock
shows that nobody holds it, and to others when it has not been renewed for ten minutes. The manifest
is replaced only where it is the one that was read (`If-Match` on S3, else compared under the lock).
"""

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retrieval_engine.errors import StoreChanged, StoreError, UrlFailure
from retrieval_engine.locks import FileLock, Taken
from retrieval_engine.store.mirror import LOCK, MANIFEST, SHARDS, Mirror
from retrieval_engine.urls import Url

_RENEWED_S, _LEASE_S = 60, 600
_S3 = re.compile(r"s3a?://")
_held: dict[Path, "SendingLock"] = {}


class SendingLock(FileLock):
    """The lock of a mirror and of the store that it stands for.

    Args:
        mirror: of the store.

    Raises:
        Taken: another writer holds it, here or elsewhere.
        StoreError: the store cannot be asked.
    """

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._token = secrets.token_hex(16)
        self._ended = threading.Event()
        self._lock_here()
        try:
            self._claim()
            mirror.fetch_json()
        except BaseException:
            super().release()
            raise
        _held[mirror.path] = self
        threading.Thread(target=self._renew, daemon=True).start()

    def _lock_here(self) -> None:
        for attempt in range(20):  # who brings the mirror up to date looks whether it is held
            try:
                super().__init__(self._mirror.path / LOCK)
            except Taken:
                if attempt == 19:
                    raise
                time.sleep(0.05)
            else:
                return

    def _said(self) -> bytes:
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        said = {"owner": owner, "mirror": self._mirror.name, "token": self._token}
        return json.dumps({**said, "renewed": time.time()}).encode()

    def _claim(self) -> None:
        if put(self._mirror, LOCK, self._said(), new=True):
            return
        known = self._mirror.read(LOCK) or b"{}"
        try:
            said = json.loads(known)
        except ValueError:
            said = {}
        age = time.time() - float(said.get("renewed", time.time()))
        if said.get("mirror") != self._mirror.name and age < _LEASE_S:
            raise Taken(f"{said.get('owner', 'another process')}, {age:.0f} s ago")
        if not put(self._mirror, LOCK, self._said(), instead=known):
            raise Taken("another process")

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_S):
            with suppress(StoreError):  # `check` tells, before anything is committed
                self.check()
                put(self._mirror, LOCK, self._said())

    def check(self) -> None:
        """Make sure that the lock is still this writer's.

        Raises:
            StoreChanged: it was held to be dead, and another took its place.
        """
        with suppress(ValueError):
            if json.loads(self._mirror.read(LOCK) or b"{}").get("token") == self._token:
                return
        raise _taken_over(self._mirror)

    def release(self, *, remove: bool = False) -> None:
        """Let others write, here and elsewhere."""
        if not self._ended.is_set():
            self._ended.set()
            _held.pop(self._mirror.path, None)
            with suppress(StoreError, UrlFailure, OSError):
                self.check()
                drop(self._mirror.path, LOCK)
        super().release(remove=remove)


def put(
    mirror: Mirror, name: str, data: bytes, *, new: bool = False, instead: bytes | None = None
) -> bool:
    """Replace a small file of the store at once.

    Args:
        mirror: of the store.
        name: of the file.
        data: its bytes.
        new: only where there is none.
        instead: only where it has these bytes now.

    Returns:
        False where the condition does not hold; true also where an answer was lost and the bytes
        are there.

    Raises:
        StoreError: it cannot be written.
    """
    place, how = mirror.place(name), {}
    if instead is not None:
        if mirror.read(name) != instead:
            return False
        if _S3.match(mirror.root.url):
            how["IfMatch"] = f'"{(mirror.root / name).state().version}"'
            if mirror.read(name) != instead:  # the state is that of these bytes
                return False
    elif new:
        how["mode"] = "create"
    try:
        mirror.system.pipe_file(place, data, **how)
    except FileExistsError:
        return mirror.read(name) == data
    except Exception as error:  # botocore, aiohttp, … have each their own tree
        if how and mirror.read(name) == data:
            return True
        if "PreconditionFailed" in str(error) or "ConditionalRequestConflict" in str(error):
            return False
        raise _cannot(mirror.root / name, error) from error
    return True


def send(path: Path, name: str, data: bytes) -> None:
    """Write a JSON file of the store that a mirror stands for; nothing for other stores."""
    if mirror := _held_mirror(path):
        if name != MANIFEST:
            put(mirror, name, data)
            return
        file = path / name
        before = file.read_bytes() if file.is_file() else None
        if not put(mirror, name, data, new=before is None, instead=before):
            raise _taken_over(mirror)


def _held_mirror(path: Path) -> Mirror | None:
    """The mirror in a folder, once its writer is known to hold the store still."""
    mirror = Mirror.at(path)
    if mirror and path in _held:
        _held[path].check()
    return mirror


def _taken_over(mirror: Mirror) -> StoreChanged:
    return StoreChanged(
        f"{mirror.root} was taken over by another writer; nothing of it was overwritten",
        hint="run the same again: what is committed stays",
    )


def send_shards(path: Path, files: Iterable[tuple[str, int, str]]) -> None:
    """Send the files, by name, length and sha256, that are not there yet; none of other stores.

    What is there already is never overwritten: it is another's, or came before its answer was lost.

    Raises:
        StoreError: one cannot be sent; nothing became visible.
    """
    if not (mirror := _held_mirror(path)):
        return
    known = path / MANIFEST
    listed = known.read_bytes() if known.is_file() else b""
    for name, size_bytes, sha256 in files:
        url, file = mirror.root / SHARDS / name, path / SHARDS / name
        if f'"{name}"'.encode() in listed:
            continue
        try:
            with _told_of(url):
                mirror.system.put_file(str(file), mirror.place(f"{SHARDS}/{name}"), mode="create")
        except FileExistsError:
            if mirror.check(name, size_bytes, sha256):
                raise _taken_over(mirror) from None
        with mirror.told():
            there = url.state().size_bytes
        if there != size_bytes:
            raise StoreError(f"{url} has {there:,} bytes, {size_bytes:,} were sent")


def drop(path: Path, name: str) -> None:
    """Delete a file of the store that a mirror stands for, if it is there."""
    if mirror := Mirror.at(path):
        with suppress(FileNotFoundError), _told_of(mirror.root / name):
            mirror.system.rm_file(mirror.place(name))


def drop_unlisted(path: Path, ours: re.Pattern[str], listed: Iterable[str]) -> list[str]:
    """Delete shards that a dead writer sent and no manifest lists; the caller holds the lock."""
    if not (mirror := Mirror.at(path)):
        return []
    keep, found = set(listed), []
    with mirror.told(), suppress(UrlFailure):
        found = [entry.name for entry in (mirror.root / SHARDS).entries() if entry.is_file()]
    left = sorted(name for name in found if ours.fullmatch(name) and name not in keep)
    for name in left:
        drop(path, f"{SHARDS}/{name}")
    return left


@contextmanager
def _told_of(url: Url) -> Iterator[None]:
    """Whatever a service raises becomes one line about the address; what is or is not there passes."""
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        raise
    except Exception as error:  # botocore, aiohttp, … have each their own tree
        raise _cannot(url, error) from error


def _cannot(url: Url, error: Exception) -> StoreError:
    from retrieval_engine.urls.systems import reason_of

    reason, hint = reason_of(error) or ("there is no such place", "make the bucket first")
    return StoreError(f"cannot write {url}: {reason}", hint=hint)
