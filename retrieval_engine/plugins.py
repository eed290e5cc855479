"""Finds the members of a plug-in folder by their file names, and those that other packages add.

A new data source, model family, index backend, worker kind or command is one new file (a family:
one folder) in its place here, or an entry point of another distribution:

    [project.entry-points."vlre.sources"]
    s3list = "my_package.s3list"          # a module with what the folder's files have

Listing the names imports nothing; a member is imported when it is used.
"""

import importlib
import importlib.util
import pkgutil
import sys
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from retrieval_engine.errors import PluginBroken, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

SHIPPED = "shipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugins:
    """The members of one kind.

    Attributes:
        package: dotted name of their folder, e.g. `retrieval_engine.sources.kinds`.
        noun: what a member is called in an error, e.g. `source`.
        group: entry-point group that other distributions add members to; empty for none.
        folders: members are the folders in the package, not its files.
    """

    package: str
    noun: str
    group: str = ""
    folders: bool = False

    def names(self) -> list[str]:
        """Names of all members, sorted, without importing one; `-` is written `_`."""
        return sorted({*self.shipped(), *self.added()})

    def shipped(self) -> list[str]:
        """Names of the members in the folder."""
        return list(_members(self.package, folders=self.folders))

    def added(self) -> "dict[str, EntryPoint]":
        """Entry points of other distributions by name; a member of the folder is not replaced."""
        points = _entry_points() if self.group else None
        if points is None:
            return {}
        here = self.shipped()
        found = ((point.name.replace("-", "_"), point) for point in points.select(group=self.group))
        return {name: point for name, point in found if name not in here}

    def origins(self) -> dict[str, str]:
        """Where each member comes from, by name: `shipped`, or the distribution that adds it."""
        theirs = {name: _distribution(point) for name, point in self.added().items()}
        return {name: theirs.get(name, SHIPPED) for name in self.names()}

    def load(self, name: str) -> ModuleType:
        """Import a member.

        Args:
            name: of a file, a folder or an entry point; `-` and `_` are the same.

        Raises:
            UsageError: there is no such member; the message lists those there are.
            PluginBroken: another distribution's member cannot be imported.
        """
        module = name.replace("-", "_")
        if module in self.shipped():
            return importlib.import_module(f"{self.package}.{module}")
        if (point := self.added().get(module)) is None:
            allowed = ", ".join(n.replace("_", "-") for n in self.names())
            raise UsageError(f"unknown {self.noun} {name!r}; known: {allowed}")
        try:
            loaded: ModuleType = point.load()
        except (ImportError, AttributeError) as error:
            where = _distribution(point)
            raise PluginBroken(
                f"{self.noun} {name!r} of {where} cannot be imported: {error}",
                hint=f"install {where} again, or remove it",
            ) from error
        return loaded


def _distribution(point: "EntryPoint") -> str:
    return point.dist.name if point.dist else point.value


@cache
def _members(package: str, *, folders: bool) -> tuple[str, ...]:
    found = importlib.util.find_spec(package)
    members = pkgutil.iter_modules(found.submodule_search_locations if found else None)
    return tuple(m.name for m in members if m.ispkg == folders and not m.name.startswith("_"))


@cache
def _entry_points() -> Any:
    """All of this machine, read once; None where none can be ours.

    That is told from the files that `importlib.metadata` would read: importing it takes a twentieth
    of a second, and hardly anybody has added a member.
    """
    if not _may_be_any():
        return None
    from importlib.metadata import entry_points

    return entry_points()


def _may_be_any() -> bool:
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_distributions")]
    places = [Path(place) for place in sys.path]
    if finders != [PathFinder] or any(place.is_file() for place in places):
        return True  # distributions lie elsewhere, too: in an archive, or where a finder knows
    files = (file for place in places for file in place.glob("*.*-info/entry_points.txt"))
    try:
        return any(b"[vlre." in file.read_bytes() for file in files)
    except OSError:
        return True
