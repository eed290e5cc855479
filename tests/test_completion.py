"""Tab in bash, zsh and fish: click's own mechanism, asked as a shell asks it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main

WORDS = {
    "vlre calib": ["calibrate"],
    "vlre train-head --ki": ["--kind"],
    "vlre train-head --kind m": ["mlp"],
    "vlre encode web": ["webdataset:"],
    "vlre encode scenes:": [],
    "vlre eval coc": ["coco:"],
    "vlre caption fl": ["flickr30k:", "flickr8k:"],
    "vlre search dog --model vlre-p": ["vlre-photo"],
    "vlre search dog --rerank-model vlre-t": ["vlre-tiny"],
    "vlre caption --model vlre-p": ["vlre-photo"],
    "vlre index --recipe ivf-s": ["ivf-scan-fp16", "ivf-sq8"],
    "vlre index --recipe ou": ["ours"],
    "vlre index --backend m": ["milvus"],
}


def offered(line: str) -> list[tuple[str, str]]:
    """Kind and text of what click tells bash at the end of a line."""
    env = {
        "_VLRE_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    result = CliRunner().invoke(main, [], prog_name="vlre", env=env)
    assert result.exit_code == 0, result.output
    return [(kind, text) for kind, _, text in (row.partition(",") for row in result.stdout.split())]


@pytest.mark.parametrize("line", WORDS)
def test_a_line_is_completed(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "indices" / "recipes").mkdir(parents=True)
    (tmp_path / "indices" / "recipes" / "ours.toml").touch()
    monkeypatch.chdir(tmp_path)
    found = offered(line)
    assert [text for kind, text in found if kind == "plain"] == WORDS[line]


@pytest.mark.parametrize("line", ["vlre encode ./ph", "vlre search dog --model ./mo"])
def test_files_are_offered_beside_names(line: str) -> None:
    assert offered(line) == [("file", line.split()[-1])]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    """As the README has it; without torch, NumPy or anything else that a Tab would wait for."""
    code = (
        "import sys\nfrom retrieval_engine.cli import main\n"
        "try: main(prog_name='vlre')\n"
        "finally: print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)), file=sys.stderr)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "_VLRE_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Bash version" in run.stderr:
        pytest.skip("no bash of 4.4 or newer is here")
    assert run.returncode == 0, run.stderr
    assert "_VLRE_COMPLETE" in run.stdout
    assert run.stderr.splitlines()[-1] == "[]"
