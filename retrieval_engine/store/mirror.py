"""Stores behind addresses: a folder of this machine that stands for one, and what goes to and fro.

`s3://bucket/store` has a mirror in the cache folder, a store like any other to all code: its JSON
files are fetched when it is opened, a shard when it is first read, and its sha256 is compared.
A writer holds a lock object besides the mirror's own lock, and sends every file before the manifest
that lists it. What has been sent never changes, so that nothing is fetched twice.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from retrieval_engine.durable import partial_of, replace_file
from retrieval_engine.errors import StoreDamaged, StoreError, UrlFailure, UrlMissing
from retrieval_engine.locks import FileLock, Taken
from retrieval_engine.machine import cache_folder
from retrieval_engine.urls import Url, as_url, file_system, name_url

MIRROR = "mirror.json"
MANIFEST, LOCK, SHARDS = "manifest.json", "store.lock", "shards"
_JSON = ("store.json", MANIFEST, "failures.jsonl")
_MOST_JSON = 1 << 30
_opened: set[Path] = set()  # mirrors that this process was given the address of


def local_store(place: str | os.PathLike[str]) -> Path:
    """The folder of a store: as given, or the mirror of an address.

    Raises:
        UsageError: the address cannot be one.
    """
    if not (url := as_url(place)):
        return Path(place)
    url = str(Url(url))
    name_url(url)
    path = cache_folder() / "stores" / hashlib.sha256(url.encode()).hexdigest()[:24]
    if not (path / MIRROR).is_file():
        (path / SHARDS).mkdir(parents=True, exist_ok=True)
        said = {"url": url, "mirror": secrets.token_hex(16)}
        replace_file(path / MIRROR, (json.dumps(said) + "\n").encode())
    _opened.add(path.resolve())
    return path


def _is_ours(path: Path) -> bool:
    """Whether a folder is a mirror of this user's: a store may come from a stranger, marks and all."""
    place = path.resolve()
    return place in _opened or place.parent == (cache_folder() / "stores").resolve()


def shown_store(path: Path) -> str:
    """The address that a mirror stands for; of another store its path."""
    mirror = Mirror.at(path)
    return mirror.root.url if mirror else as_url(path) or str(path)


@dataclass(frozen=True)
class Mirror:
    """The mirror of a store.

    Attributes:
        path: its folder.
        root: the address.
        name: of this mirror among those that other machines may have.
    """

    path: Path
    root: Url
    name: str

    @classmethod
    def at(cls, path: Path) -> "Mirror | None":
        """The mirror in a folder; None where the folder is a store itself."""
        if not _is_ours(path):
            return None
        try:
            said = json.loads((path / MIRROR).read_bytes())
            name_url(said["url"])  # it was made when that was named
            return cls(path, Url(said["url"]), said["mirror"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"{path / MIRROR} cannot be read: {error}") from error

    @cached_property
    def system(self) -> Any:
        """The file system that the store is in."""
        return file_system(self.root.url.partition("://")[0])

    def place(self, name: str) -> str:
        """A file of the store, as the file system names it."""
        return str(self.system._strip_protocol(str(self.root / name)))

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None where it is not there."""
        with self.told(), suppress(UrlMissing):
            return (self.root / name).read(_MOST_JSON)
        return None

    @contextmanager
    def told(self) -> Iterator[None]:
        """Failures within the block are the store's."""
        try:
            yield
        except UrlMissing:
            raise
        except UrlFailure as error:
            raise StoreError(error.message, hint=error.hint) from error

    def pull(self) -> None:
        """Bring the JSON files up to date, unless a writer of this machine keeps them so.

        The header comes first, as everywhere: a newer manifest shows too little, never something
        wrong. A shard of the same name as another that was listed before is not that one.
        """
        from filelock import FileLock as Waiting

        with Waiting(self.path / "mirror.lock", timeout=300):
            try:
                FileLock(self.path / LOCK).release()
            except Taken:
                return
            self.fetch_json()

    def fetch_json(self) -> None:
        """See `pull`; the caller holds a lock."""
        for name in _JSON:
            data, file = self.read(name), self.path / name
            if data is None:
                file.unlink(missing_ok=True)
                continue
            before = file.read_bytes() if file.is_file() else b""
            if data == before:
                continue
            if name == MANIFEST:
                self._forget_others(_listed(before), _listed(data))
            replace_file(file, data)

    def _forget_others(self, before: dict[str, str], now: dict[str, str]) -> None:
        for file in (self.path / SHARDS).iterdir():
            if now.get(file.name) is None or now[file.name] != before.get(file.name):
                file.unlink(missing_ok=True)

    def fetch(self, name: str, size_bytes: int, sha256: str) -> None:
        """Make sure that a shard is here.

        Raises:
            FileNotFoundError: the store has no such file any more.
            StoreDamaged: its bytes are not those that the manifest lists.
            StoreError: it cannot be had.
        """
        final, url = self.path / SHARDS / name, self.root / SHARDS / name
        if final.exists():
            return
        partial = partial_of(final)
        try:
            with self.told():
                url.download(str(partial))
            if problem := _differs(partial, size_bytes, sha256):
                raise StoreDamaged(f"{url} {problem}", hint="encode its source again")
            os.replace(partial, final)
        except UrlMissing as error:
            raise FileNotFoundError(str(url)) from error
        except OSError as error:
            raise StoreError(f"cannot write {final}: {error.strerror or error}") from error
        finally:
            partial.unlink(missing_ok=True)

    def check(self, name: str, size_bytes: int, sha256: str) -> str:
        """What is wrong with a shard where it truly lies, or an empty string."""
        url, digest, length = self.root / SHARDS / name, hashlib.sha256(), 0
        try:
            with url.open() as file:
                while block := file.read(4 << 20):
                    digest.update(block)
                    length += len(block)
        except UrlMissing:
            return f"{url} is missing"
        except UrlFailure as error:
            return error.message
        if (length, digest.hexdigest()) == (size_bytes, sha256):
            return ""
        return f"{url} has {length:,} bytes of another sha256 than the manifest says"


def _listed(manifest: bytes) -> dict[str, str]:
    """sha256 of each file that a manifest lists; nothing of one that cannot be understood."""
    with suppress(ValueError, KeyError, TypeError):
        parts = json.loads(manifest)["parts"]
        return {entry["name"]: entry["sha256"] for part in parts for entry in part["files"]}
    return {}


def _differs(path: Path, size_bytes: int, sha256: str) -> str:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if (length := path.stat().st_size) != size_bytes:
        return f"has {length:,} bytes, the manifest says {size_bytes:,}"
    return "" if found == sha256 else f"has sha256 {found[:12]}, the manifest says {sha256[:12]}"
