"""Every command and every line of Python that the README shows works as printed."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def as_a_newcomer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's own default model would hide a command that names none."""
    monkeypatch.delenv("VLRE_MODEL")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language. Blocks without a language need a network or real data."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The `vlre …` lines of the shell blocks, split as a shell does."""
    lines = (line for block in blocks("sh") for line in block.splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("vlre ")]


@pytest.mark.whole
def test_the_tour_works_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = commands()
    assert {"encode", "index", "search", "eval"} <= {line[0] for line in shown}
    for line in shown:
        result = CliRunner().invoke(main, line)
        assert result.exit_code == 0, f"vlre {shlex.join(line)}\n{result.output}"
        assert result.output.strip(), f"vlre {shlex.join(line)} says nothing"
    assert (tmp_path / "sheet.html").stat().st_size > 10_000


@pytest.mark.whole
def test_the_python_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [block] = found = blocks("python")
    assert len(block.splitlines()) == 12  # an import, a blank line and the ten of `Engine`
    for block in found:
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    hits = printed.splitlines()[:4]
    assert hits[0] == "3 hits of 'a dog on grass'"
    assert [line.split()[0] for line in hits[1:]] == ["1", "2", "3"], printed


def test_the_tree_names_what_is_there() -> None:
    root = Path(__file__).parents[1]
    table = README.partition("## The tree")[2].partition("\n## ")[0]
    named = re.findall(r"^\| (.+?) \|", table, flags=re.MULTILINE)[2:]
    paths = [path for cell in named for path in re.findall(r"`([^`]+)`", cell)]
    assert len(paths) > 10
    missing = [
        path
        for path in paths
        if not (root / path).exists() and not (root / "retrieval_engine" / path).exists()
    ]
    assert not missing
