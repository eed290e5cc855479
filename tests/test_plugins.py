"""What an installation can do, and who brought it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import retrieval_engine
from retrieval_engine.cli import main
from retrieval_engine.plugins import Plugins

ROOT = Path(retrieval_engine.__file__).parents[1]


def test_all_that_is_shipped_is_listed_by_kind() -> None:
    result = CliRunner().invoke(main, ["plugins", "--json"])
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["kind"] for row in rows} == {"source", "model", "backend", "command"}
    for row in (
        {"kind": "source", "name": "flickr8k", "from": "shipped"},
        {"kind": "model", "name": "blip2", "from": "shipped"},
        {"kind": "backend", "name": "faiss", "from": "shipped"},
        {"kind": "command", "name": "import-embeddings", "from": "shipped"},
    ):
        assert row in rows
    lines = CliRunner().invoke(main, ["plugins"]).stdout.splitlines()
    assert [line.split() for line in lines] == [list(row.values()) for row in rows]


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """A folder with another distribution, whose modules are not there."""
    info = tmp_path / "acme_pictures-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-pictures\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(
        "[vlre.sources]\nacme-bucket = acme.bucket\nfolder = acme.folder\n\n"
        "[vlre.commands]\nacme-sort = acme.sort\n"
    )
    return tmp_path


def vlre(beside: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with the distributions in a folder installed."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(beside)!r}]\n"
        f"from retrieval_engine.cli import main; main({list(words)!r})\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=beside, check=False
    )


def test_a_member_of_another_distribution_is_listed_under_its_name(acme: Path) -> None:
    rows = [json.loads(line) for line in vlre(acme, "plugins", "--json").stdout.splitlines()]
    assert {"kind": "source", "name": "acme-bucket", "from": "acme-pictures"} in rows
    assert {"kind": "command", "name": "acme-sort", "from": "acme-pictures"} in rows
    # A shipped member is not replaced.
    assert {"kind": "source", "name": "folder", "from": "shipped"} in rows


def test_a_broken_command_fails_alone(acme: Path) -> None:
    shown = vlre(acme, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "acme-sort" in shown.stdout
    assert "search" in shown.stdout
    failed = vlre(acme, "acme-sort", "photos", "--fast")
    assert failed.returncode == 1
    assert failed.stderr.splitlines() == [
        "Error: command 'acme-sort' of acme-pictures cannot be imported: No module named 'acme'",
        "hint: install acme-pictures again, or remove it",
    ]


def test_kinds_without_a_group_are_all_shipped() -> None:
    kinds = Plugins(package="retrieval_engine.workers.kinds", noun="kind of worker")
    assert set(kinds.origins()) == {"processes", "serial", "threads"}
    assert set(kinds.origins().values()) == {"shipped"}


def test_nothing_is_imported_to_learn_that_nobody_added_anything() -> None:
    code = (
        "import sys\n"
        "from retrieval_engine.sources import KINDS\n"
        "assert 'folder' in KINDS.names() and not KINDS.added()\n"
        "print('importlib.metadata' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "False\n"
