"""Names imported on first use: what a package gives is what it tells type checkers."""

import ast
import importlib
import py_compile
from pathlib import Path

import pytest

import retrieval_engine

PACKAGE = Path(retrieval_engine.__file__).parent
LAZY = [p for p in sorted(PACKAGE.rglob("__init__.py")) if "lazily(" in p.read_text()]


def _of_type_checkers(init: Path) -> dict[str, str]:
    """The module of each name that a package imports where `TYPE_CHECKING` is true."""
    blocks = [
        node
        for node in ast.parse(init.read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [n for block in blocks for n in block.body if isinstance(n, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def _given(init: Path, package: str) -> dict[str, str]:
    """The module of each name that `lazily` is told of."""
    found = next(
        node
        for node in ast.walk(ast.parse(init.read_text()))
        if isinstance(node, ast.Dict) and isinstance(node.values[0], ast.Tuple)
    )
    homes = ast.literal_eval(found)
    return {
        name: package + module if module.startswith(".") else module
        for module, names in homes.items()
        for name in names
    }


@pytest.mark.parametrize("init", LAZY, ids=lambda path: path.parent.name)
def test_a_package_gives_what_it_tells_type_checkers(init: Path) -> None:
    package = ".".join(init.parent.relative_to(PACKAGE.parent).parts)
    assert _given(init, package) == _of_type_checkers(init)


def test_names_are_found_where_only_bytecode_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a frozen application."""
    package = tmp_path / "frozen_lab"
    package.mkdir()
    (package / "room.py").write_text("thing = 3\n")
    (package / "__init__.py").write_text(
        "from retrieval_engine.lazy import lazily\n"
        "__getattr__ = lazily(__name__, {'.room': ('thing',)})\n"
    )
    for source in list(package.iterdir()):
        py_compile.compile(str(source), cfile=str(source.with_suffix(".pyc")), doraise=True)
        source.unlink()
    monkeypatch.syspath_prepend(tmp_path)
    lab = importlib.import_module("frozen_lab")
    assert lab.thing == 3
    with pytest.raises(AttributeError, match="module 'frozen_lab' has no attribute 'other'"):
        lab.other  # noqa: B018
