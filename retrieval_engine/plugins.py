"""Finds the members of a plug-in folder by their file names.

A new data source, encoder family, index backend, worker kind or command is one new file in its
folder. Listing the names imports nothing; a member is imported when it is used.
"""

import importlib
import importlib.util
import pkgutil
from types import ModuleType

from retrieval_engine.errors import UsageError


def names(package: str) -> list[str]:
    """Names of the modules in a package, sorted, without importing them.

    Args:
        package: dotted name, e.g. `retrieval_engine.sources.kinds`.
    """
    found = importlib.util.find_spec(package)
    paths = found.submodule_search_locations if found else None
    return sorted(m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_"))


def load(package: str, name: str, *, noun: str) -> ModuleType:
    """Import one member of a package.

    Args:
        package: dotted name of the folder.
        name: file name of the member; `-` and `_` are the same.
        noun: what the member is called in an error, e.g. `source`.

    Raises:
        UsageError: there is no such member; the message lists those there are.
    """
    known = names(package)
    module = name.replace("-", "_")
    if module not in known:
        allowed = ", ".join(n.replace("_", "-") for n in known)
        raise UsageError(f"unknown {noun} {name!r}; known: {allowed}")
    return importlib.import_module(f"{package}.{module}")
