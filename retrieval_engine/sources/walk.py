"""Picture files under a folder, in the order of their paths."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".heic", ".heif")
)
# A store of ours names itself by this file; nothing in it is data.
_OWN_OUTPUT = frozenset(("store.json",))

UNREADABLE = "folders cannot be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFile:
    """One picture that was found; it has not been opened.

    Attributes:
        id: path relative to the root, with `/`.
        entry: its directory entry, whose `stat()` is cached.
        text: absolute path of the text file of the same name beside it, or empty.
    """

    id: str
    entry: os.DirEntry[str]
    text: str


class Walk:
    """One walk over a folder; hidden files and folders and our own output are left out.

    Args:
        root: the folder, absolute.

    Attributes:
        skipped: what was left out and should not pass in silence, with its number.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: Counter[str] = Counter()
        self._suffixes = picture_suffixes()

    def pictures(self) -> Iterator[PictureFile]:
        """Every picture, sorted by id as a string whatever order the file system has."""
        yield from self._directory(str(self.root), "", frozenset())

    def _directory(
        self, path: str, prefix: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[PictureFile]:
        try:
            state = os.stat(path)
            with os.scandir(path) as entries:
                found = {entry.name: entry for entry in entries}
        except OSError:
            self.skipped[UNREADABLE] += 1
            return
        here = (state.st_dev, state.st_ino)
        if here in above or _OWN_OUTPUT & found.keys():  # a link back up, or nothing of the user's
            return
        texts = {n.removesuffix(".txt"): e.path for n, e in found.items() if n.endswith(".txt")}
        # `a/` sorts as its contents' ids do among `a.jpg` and `a0.jpg`
        order = sorted((name + "/" * entry.is_dir(), entry) for name, entry in found.items())
        for name, entry in order:
            if name.startswith("."):
                continue
            if name.endswith("/"):
                yield from self._directory(entry.path, prefix + name, above | {here})
            elif self._is_picture(entry):
                text = texts.get(os.path.splitext(name)[0], "")
                yield PictureFile(id=prefix + name, entry=entry, text=text)

    def _is_picture(self, entry: os.DirEntry[str]) -> bool:
        if os.path.splitext(entry.name)[1].lower() not in self._suffixes:
            return False
        if not entry.is_file():
            self.skipped["links lead nowhere"] += entry.is_symlink()
            return False
        if not _is_unicode(entry.path):
            self.skipped["pictures have names that are not UTF-8"] += 1
            return False
        return True


def picture_suffixes() -> frozenset[str]:
    """Endings, in lower case, of the files that count as pictures with this Pillow."""
    Image.init()
    return _SUFFIXES | ({".avif"} if ".avif" in Image.EXTENSION else frozenset())


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
