"""Names of a package that are imported when they are first asked for (PEP 562).

Importing a room must not import torch; importing a name from it may.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence


def lazily(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """The `__getattr__` of a package.

    Args:
        package: its dotted name.
        names: by module, the names that it gives; a module of the package begins with a dot. For
            type checkers the package imports the same where `TYPE_CHECKING` is true.
    """
    homes = {name: module for module, own in names.items() for name in own}

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name], package), name)

    return get
