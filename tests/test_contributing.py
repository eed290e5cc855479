"""The examples of CONTRIBUTING.md, installed as the distribution they are, keep their contracts."""

import json
import os
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from retrieval_engine.plugins import _entry_points
from tests.children import in_child, vlre

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^```(python|toml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds `my-lab`, its tests, and what an installer would write of it."""
    folder = tmp_path_factory.mktemp("lab")
    for _, name, body in EXAMPLE.findall(TEXT):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(body, encoding="utf-8")
    (folder / "my_lab" / "__init__.py").touch()
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / "my_lab-0.1.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head)
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def run(lab: Path, work: Callable[[], object]) -> str:
    """What a process of its own says, in which `my-lab` is installed; it must end well."""

    def installed() -> object:
        os.chdir(lab)
        sys.path.insert(0, str(lab))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(lab), str(ROOT)])  # for those it starts
        _entry_points.cache_clear()
        sys.exit(work())  # type: ignore[arg-type]

    ended = in_child(installed)
    assert ended.code == 0, ended.output
    return ended.output


def test_every_example_is_a_whole_file() -> None:
    assert len(re.findall(r"^```python", TEXT, re.MULTILINE)) == 13
    names = [name for kind, name, _ in EXAMPLE.findall(TEXT) if kind == "python"]
    assert len(set(names)) == len(names) == 13


@pytest.mark.whole
def test_every_example_passes_its_own_tests(lab: Path) -> None:
    told = run(lab, lambda: pytest.main(["-v", "-W", "error", "-p", "no:cacheprovider", "tests"]))
    assert "skipped" not in told
    for file in sorted((lab / "tests").iterdir()):
        if file.suffix == ".py":
            assert re.search(rf"^tests/{file.name}::.* PASSED", told, re.MULTILINE)
    assert "TestChineseClip::test_opened_twice_it_is_the_same PASSED" in told


def test_every_example_is_among_the_plugins(lab: Path) -> None:
    rows = [json.loads(line) for line in run(lab, vlre("plugins", "--json")).splitlines()]
    assert [(row["kind"], row["name"]) for row in rows if row["from"] == "my-lab"] == [
        ("source", "zip"),
        ("model", "chinese-clip"),
        ("backend", "matrix"),
        ("command", "caption-words"),
    ]


def test_a_dual_encoder_is_under_sixty_lines(lab: Path) -> None:
    code = (lab / "my_lab" / "chinese_clip" / "encoder.py").read_text()
    inside = code[code.index("class ChineseClipEncoder") :]
    assert sum(1 for line in inside.splitlines() if line.strip()) < 60
