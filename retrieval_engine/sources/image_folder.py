"""Images found by name below a folder or an address, and what tells whether one has changed."""

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from retrieval_engine.errors import UrlMissing
from retrieval_engine.sources.annotation import composed
from retrieval_engine.urls import Entry, Place, State, Url


class ImageFolder:
    """Finds images under a folder; each directory is listed once, nothing is opened.

    A name that is not there is looked for in its other Unicode form: macOS takes names apart
    (`e` and an accent, NFD), most annotations put them together (`é`, NFC).
    """

    def __init__(self, root: Path) -> None:
        self.root: Place = root
        self._root = str(root)
        self._names: dict[str, Mapping[str, str]] = {}

    def state(self, path: str) -> State:
        """Size and time of an image that was found."""
        return state_of(Path(path))

    def find(self, files: Iterable[str]) -> str | None:
        """The first of these names that is there, as an absolute path."""
        files = tuple(files)
        for file in files:
            exact = os.path.normpath(os.path.join(self._root, file))
            directory, name = os.path.split(exact)
            if self._listed(directory).get(name) == name:
                return exact
        return next((path for file in files if (path := self._composed(file))), None)

    def _composed(self, file: str) -> str | None:
        path = self._root
        for part in file.split("/"):
            names = self._listed(path)
            found = names.get(part) or names.get(composed(part))
            if found is None:
                return None
            path = os.path.join(path, found)
        return path

    def _listed(self, directory: str) -> Mapping[str, str]:
        """The names in a directory, by themselves and by their composed form."""
        if directory not in self._names:
            names = _listing(directory)
            self._names[directory] = {composed(n): n for n in names} | {n: n for n in names}
        return self._names[directory]


class RemoteImages:
    """Finds images below an address, as `ImageFolder` does under a folder; none above it.

    Raises:
        UrlFailure: a listing fails. What cannot be listed is not missing.
    """

    def __init__(self, root: Url) -> None:
        self.root: Place = root
        self._top = root
        self._entries: dict[str, Mapping[str, Entry]] = {}

    def find(self, files: Iterable[str]) -> str | None:
        """The first of these names that is there, as its address."""
        found = (self._entry(file) for file in files)
        return next((entry.path for entry in found if entry is not None), None)

    def state(self, path: str) -> State:
        """Size, time and version of an image that was found, as the listing has them."""
        folder, _, name = path.removeprefix(self._top.url + "/").rpartition("/")
        entry = self._listed(folder).get(name)
        return Url(path).state() if entry is None else entry.state()

    def _entry(self, file: str) -> Entry | None:
        folder, _, name = posixpath.normpath(file).rpartition("/")
        if folder.startswith(("/", "..")) or name in {"", ".", ".."}:
            return None
        names = self._listed(folder)
        return names.get(name) or names.get(composed(name))

    def _listed(self, folder: str) -> Mapping[str, Entry]:
        if folder not in self._entries:
            try:
                found = [entry for entry in (self._top / folder).entries() if entry.is_file()]
            except UrlMissing:
                found = []
            names = {composed(entry.name): entry for entry in found}
            self._entries[folder] = names | {entry.name: entry for entry in found}
        return self._entries[folder]


def _listing(directory: str) -> Sequence[str]:
    try:
        return sorted(os.listdir(directory))
    except (OSError, ValueError):  # ValueError: a zero character in a name
        return ()


def state_of(place: Place) -> State:
    """Size, time and version of a file; see `size_and_time` for one of this machine."""
    if isinstance(place, Url):
        return place.state()
    size_bytes, mtime_ns = size_and_time(str(place))
    return State(size_bytes=size_bytes, mtime_ns=mtime_ns, version="")


def size_and_time(path: str) -> tuple[int, int]:
    """Length of a file and its time in nanoseconds; -1 and -1 where it is gone or leads nowhere.

    Its item then fails where its bytes are read, and no other does.
    """
    try:
        state = os.stat(path)
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns
