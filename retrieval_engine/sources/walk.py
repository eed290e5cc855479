"""Picture files under a folder, in the order of their paths."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from retrieval_engine.errors import SourceError
from retrieval_engine.sources.annotation import composed
from retrieval_engine.sources.decode import picture_suffixes
from retrieval_engine.sources.reading import read_whole
from retrieval_engine.urls import Entry, Place, Url

AnyEntry = os.DirEntry[str] | Entry
# A store of ours names itself by this file; nothing in it is data.
_STORE_FILE = "store.json"
_STORE_KEYS = frozenset(("format_version", "spec", "fingerprint"))
_STORE_BYTES = 4 << 20
_SIDECAR = ".txt"
_SHOWN = 8

UNREADABLE = "folders cannot be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFile:
    """One picture that was found; it has not been opened.

    Attributes:
        id: path relative to the root, with `/`.
        entry: as its folder lists it.
        texts: the text files that go with it: `a.txt`, `a.jpg.txt`.
    """

    id: str
    entry: AnyEntry
    texts: tuple[Place, ...]


class Walk:
    """One walk over a folder; hidden files and folders and our own output are left out.

    Args:
        root: the folder, absolute, or an address. Where a listing below an address fails the
            walk ends with `UrlFailure`: what nobody can list is not gone.
        used: names of other files that the caller reads, which are not counted as left out.
        suffixes: endings of what is looked for, in lower case; none are those of pictures.
        noun: what these are called, in the plural.

    Attributes:
        skipped: what was left out and should not pass in silence, with its number.
    """

    def __init__(
        self,
        root: Place,
        used: frozenset[str] = frozenset(),
        *,
        suffixes: frozenset[str] = frozenset(),
        noun: str = "pictures",
    ) -> None:
        self.root = root
        self.skipped: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self._used = used
        self._suffixes, self._noun = suffixes or picture_suffixes(), noun

    def pictures(self) -> Iterator[PictureFile]:
        """Every picture, sorted by id as a string whatever order the file system has."""
        yield from self._directory(self.root, "", frozenset())

    @property
    def unread(self) -> bool:
        """Whether a folder could not be read."""
        return self.skipped[UNREADABLE] > 0

    def notes(self) -> list[str]:
        """Lines for people about what was left out, after the last picture."""
        lines = [f"{count:,} {what}" for what, count in self.skipped.items() if count]
        if self.others:
            most = sorted(self.others.items(), key=lambda pair: (-pair[1], pair[0]))[:_SHOWN]
            kinds = ", ".join(f"{name} {count:,}" for name, count in most)
            more = ", …" if len(self.others) > _SHOWN else ""
            total = self.others.total()
            lines.append(
                f"{total:,} other files are no {self._noun} by their endings: {kinds}{more}"
            )
        return lines

    def _directory(
        self, path: Place, prefix: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[PictureFile]:
        listed = self._listed(path)
        if listed is None or listed[0] in above:  # a link back up
            return
        here, found = listed
        if _STORE_FILE in found and _is_store(path / _STORE_FILE):
            self.skipped["folders are stores of features"] += 1
            return
        endings = {name: os.path.splitext(name)[1].lower() for name in found}
        texts = {n: e for n, e in found.items() if endings[n] == _SIDECAR}
        texts = {composed(n).lower(): e for n, e in texts.items()} | texts
        used: set[str] = set()
        # `a/` sorts as its contents' ids do among `a.jpg` and `a0.jpg`
        order = sorted((name + "/" * _is_dir(entry), entry) for name, entry in found.items())
        for name, entry in order:
            if name.startswith("."):
                self._hidden(name, endings[entry.name])
            elif name.endswith("/"):
                yield from self._directory(path / entry.name, prefix + name, above | {here})
            elif self._is_picture(entry, endings[entry.name]):
                own = _sidecars(name, texts) if texts else []
                used.update(text.name for text in own)
                paths = tuple(path / text.name for text in own)
                yield PictureFile(id=prefix + name, entry=entry, texts=paths)
        for name, entry in order:
            self._other(name, entry, endings[entry.name], used)

    def _listed(self, path: Place) -> tuple[tuple[int, int], dict[str, AnyEntry]] | None:
        """Which folder it truly is, and what lies in it by name."""
        if isinstance(path, Url):
            return (len(str(path)), -1), {entry.name: entry for entry in path.entries()}
        try:
            state = path.stat()
            with os.scandir(path) as entries:
                return (state.st_dev, state.st_ino), {entry.name: entry for entry in entries}
        except OSError:
            self.skipped[UNREADABLE] += 1
            return None

    def _is_picture(self, entry: AnyEntry, ending: str) -> bool:
        if ending not in self._suffixes:
            return False
        if not _is_file(entry):
            what = (
                "links lead nowhere" if entry.is_symlink() else f"{self._noun} are pipes or devices"
            )
            self.skipped[what] += 1
            return False
        if not _is_unicode(entry.path):
            self.skipped[f"{self._noun} have names that are not UTF-8"] += 1
            return False
        return True

    def _hidden(self, name: str, ending: str) -> None:
        if name.endswith("/"):
            self.skipped["hidden folders"] += 1
        elif ending in self._suffixes and not name.startswith("._"):
            self.skipped[f"hidden {self._noun}"] += 1

    def _other(self, name: str, entry: AnyEntry, ending: str, used: set[str]) -> None:
        if name.startswith(".") or name.endswith("/") or ending in self._suffixes:
            return
        if entry.is_symlink() and not _is_file(entry):
            self.skipped["links lead nowhere"] += 1
        elif name not in used and name not in self._used:
            self.others[ending or "(none)"] += 1


def _sidecars(name: str, texts: Mapping[str, AnyEntry]) -> list[AnyEntry]:
    """The text files of a picture: `a.txt` and `a.jpg.txt`, in letters of either case."""
    wanted = [f"{part}{_SIDECAR}" for part in (os.path.splitext(name)[0], name)]
    found = [texts.get(text) or texts.get(composed(text).lower()) for text in wanted]
    return [entry for entry in found if entry is not None and not _is_dir(entry)]


def _is_dir(entry: AnyEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: AnyEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_store(path: Place) -> bool:
    """Whether a `store.json` is of a store of ours; a user may have one of their own."""
    try:
        value = json.loads(read_whole(path, _STORE_BYTES))
    except (SourceError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() >= _STORE_KEYS


def path_matcher(glob: str) -> Callable[[str], bool]:
    """Whether a relative path matches a pattern.

    Args:
        glob: `*` and `?` stay within a folder, `**` does not; a pattern without `/` is matched
            against the file's name alone.
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pattern = re.compile("".join(meaning.get(part, re.escape(part)) for part in parts), re.DOTALL)
    if "/" in glob or glob == "**":
        return lambda path: pattern.fullmatch(path) is not None
    return lambda path: pattern.fullmatch(path.rpartition("/")[2]) is not None


def _is_unicode(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # a name in another encoding, which no Parquet or JSON can hold
        return False
    return True
