"""constraints-min.txt: what `make test-min` installs is the lowest that pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TRIED = ("cpu", "data", "plots", "serve", "siglip", "watch", "testing")


def pinned(file: str) -> dict[str, Version]:
    """Releases by name."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / file).read_text(), flags=re.MULTILINE)
    return {name.lower().replace("_", "-"): Version(version) for name, version in found}


def asked(*extras: str) -> dict[str, Requirement]:
    """Direct requirements by name."""
    lines = PROJECT["dependencies"] + [
        line for extra in extras for line in PROJECT["optional-dependencies"][extra]
    ]
    found = {r.name.lower(): r for r in map(Requirement, lines)}
    return {name: r for name, r in found.items() if name not in ("vlre", "torch")}


def test_each_bound_is_the_release_that_is_tried() -> None:
    lowest = pinned("constraints-min.txt")
    bounds = {
        name: Version(next(iter(requirement.specifier)).version)
        for name, requirement in asked(*TRIED).items()
    }
    assert "torch" not in lowest
    assert {name: lowest[name] for name in bounds} == bounds


def test_what_is_developed_with_is_allowed() -> None:
    used = pinned("constraints.txt")
    extras = [e for e in PROJECT["optional-dependencies"] if e not in ("gpu", "quant", "dev")]
    for name, requirement in asked(*extras, "dev").items():
        if name in used:
            assert requirement.specifier.contains(used[name]), requirement
