"""Data flows one way: every module is in the import contract, and the contract bites."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import retrieval_engine

PACKAGE = Path(retrieval_engine.__file__).parent
ROOT = PACKAGE.parent
LAYERS = next(
    contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    if contract["type"] == "layers"
)
ROWS = [[name.strip() for name in row.split("|")] for row in LAYERS["layers"]]


def test_every_room_and_every_module_beside_them_is_in_one_row() -> None:
    rooms = {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")}
    modules = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"}
    placed = [name for row in ROWS for name in row]
    assert sorted(placed) == sorted(rooms | modules)
    assert LAYERS["exhaustive"] is True
    assert ROWS[:2] == [["testing"], ["cli"]]


def test_contributing_names_every_room_in_its_row() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| row |") : text.index("Short functions")].splitlines()[2:]
    for row, line in zip(ROWS, filter(None, table), strict=True):
        places = re.findall(r"`(\w+)(?:/|\.py)`", line.split("|")[2])
        assert set(places) <= set(row)
        assert {name for name in row if (PACKAGE / name).is_dir()} <= set(places)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's modules and its import contract, to be changed."""
    shutil.copytree(
        PACKAGE,
        tmp_path / PACKAGE.name,
        ignore=lambda folder, names: [
            name for name in names if not (name.endswith(".py") or Path(folder, name).is_dir())
        ],
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(copy: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_module_below_may_import_the_command_line(copy: Path) -> None:
    package = copy / PACKAGE.name
    lower = []
    for name in (name for row in ROWS[2:] for name in row):
        file = (
            package / name / "__init__.py" if (package / name).is_dir() else package / f"{name}.py"
        )
        file.write_text(file.read_text() + "\nimport retrieval_engine.cli\n")
        lower.append(f"retrieval_engine.{name}")
    linted = lint(copy)
    assert linted.returncode == 1, linted.stdout + linted.stderr
    assert "data flows one way BROKEN" in linted.stdout
    for name in lower:
        assert f"{name} is not allowed to import retrieval_engine.cli" in linted.stdout


def test_a_module_without_a_place_is_refused(copy: Path) -> None:
    (copy / PACKAGE.name / "helpers.py").write_text('"""Whatever."""\n')
    linted = lint(copy)
    assert linted.returncode == 1
    assert "helpers" in linted.stdout
