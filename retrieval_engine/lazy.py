"""Names of a package that are imported when they are first asked for (PEP 562).

Importing a room must not import torch; importing a name from it may.
"""

import ast
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def lazily(package: str, homes: Mapping[str, str] | None = None) -> Callable[[str], object]:
    """The `__getattr__` of a package.

    Args:
        package: its dotted name.
        homes: by name, the module of the package that holds it; by default the names are those
            that the package imports for type checkers alone, `if TYPE_CHECKING: from … import …`.
    """
    found = {name: f"{package}.{home}" for name, home in (homes or {}).items()}

    def get(name: str) -> object:
        if not found:
            found.update(_typed_imports(package))
        if name not in found:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(found[name]), name)

    return get


def _typed_imports(package: str) -> dict[str, str]:
    """The module of each name that a package imports where `TYPE_CHECKING` is true."""
    tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8"))
    typed = [
        n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    ]
    imports = [n for block in typed for n in block.body if isinstance(n, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}
