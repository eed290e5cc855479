"""A source's name, checked: the `?key=value` part, and the files that its argument stands for."""

import glob
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar, cast

from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.urls import Place, Url, is_url, name_url

AnyPlace = TypeVar("AnyPlace", bound=Place)
_SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_TRUE = {"", "1", "true", "yes"}
_FALSE = {"0", "false", "no"}


class Options:
    """The options of one source.

    Args:
        kind: name of the source kind, for messages.
        options: as parsed; `-` and `_` in a key are the same.
        allowed: every key the kind knows.

    Raises:
        UsageError: a key is not known.
    """

    def __init__(self, kind: str, options: Mapping[str, str], allowed: Iterable[str]) -> None:
        self._kind = kind
        self._values = {key.replace("-", "_"): value for key, value in options.items()}
        known = sorted(allowed)
        for key in self._values:
            if key not in known:
                raise UsageError(
                    f"{kind} has no option {key!r}; allowed: {', '.join(known) or 'none'}"
                )

    def text(self, key: str, default: str = "") -> str:
        """The value as it was given."""
        return self._values.get(key, default)

    def flag(self, key: str) -> bool:
        """A yes or no; the bare key means yes, an absent one no."""
        value = self._values.get(key, "no").lower()
        if value not in _TRUE | _FALSE:
            raise UsageError(f"{self._kind}: {key}={value} is neither true nor false")
        return value in _TRUE

    def count(self, key: str) -> int:
        """A whole number of at least 1, or 0 where the key is absent."""
        value = self._values.get(key)
        if value is None:
            return 0
        if not value.isdecimal() or int(value) < 1:
            raise UsageError(f"{self._kind}: {key}={value} is no whole number above 0")
        return int(value)

    def split(self) -> str:
        """The split asked for under its usual name, or empty for all."""
        return split_name(self._values.get("split", ""))

    def directory(self, key: str, default: Place) -> Place:
        """A directory that exists, absolute; an address counts as named by the user.

        Raises:
            SourceError: it does not exist.
        """
        return existing_directory(named_place(self._values.get(key) or str(default)))


def named_place(text: str) -> Place:
    """What a person names: an address, which may be opened from now on, or a path.

    Raises:
        UsageError: the address cannot be one.
    """
    if not is_url(text):
        return Path(text).expanduser()
    name_url(text)
    return Url(text)


def existing_directory(path: AnyPlace) -> AnyPlace:
    """The path made absolute.

    Raises:
        SourceError: there is no directory.
    """
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise SourceError(f"{path} {what}")
    return cast("AnyPlace", path.resolve())


def existing_file(path: AnyPlace) -> AnyPlace:
    """The path made absolute.

    Raises:
        SourceError: there is no such file.
    """
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise SourceError(f"{path} {what}")
    return cast("AnyPlace", path.resolve())


def existing_files(pattern: str) -> list[Place]:
    """The files that a pattern with `{000..009}`, `{a,b}` and `*` stands for.

    Raises:
        SourceError: one that is named is not there, or nothing matches.
    """
    if is_url(pattern):
        name_url(pattern)
    files: list[Place] = []
    for name in _expand(pattern):
        files += matching(name) if glob.has_magic(name) else [place_at(name)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        more = f" ({len(missing):,} of {len(files):,} shards)" if len(missing) > 1 else ""
        raise SourceError(f"{missing[0] if missing else pattern} does not exist{more}")
    return files


def place_at(text: str) -> Place:
    """The place that a path or an address stands for; nobody has named it by that."""
    return Url(text) if is_url(text) else Path(text)


def matching(pattern: str) -> list[Place]:
    """What a pattern with `*` stands for, in the order of the names."""
    if is_url(pattern):
        return list(Url(pattern).glob())
    return [Path(file) for file in sorted(glob.glob(pattern, recursive=True))]


def _expand(pattern: str) -> list[str]:
    """All strings a pattern with braces stands for; ranges keep their leading zeros."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    if match[3] is not None:
        middle = match[3].split(",")
    else:
        middle = [f"{n:0{len(match[1])}}" for n in range(int(match[1]), int(match[2]) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + part + rest for part in middle for rest in _expand(tail)]


def split_name(raw: str) -> str:
    """`train`, `val` or `test` for the names data sets give these; any other in lower case."""
    name = raw.strip().lower()
    return _SPLITS.get(name, name)
