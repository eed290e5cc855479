"""What holds for every command: light help, one example, clear errors, the right exit codes."""

import re
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from retrieval_engine.cli import Commands, main
from retrieval_engine.errors import VlreError

HEAVY = {
    *("torch", "numpy", "h5py", "faiss", "transformers", "pyarrow", "PIL", "rich"),
    *("datasets", "peft", "matplotlib"),
}


def names() -> list[str]:
    assert isinstance(main, Commands)
    return main.list_commands(click.Context(main))


def command(name: str) -> click.Command:
    assert isinstance(main, Commands)
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from retrieval_engine.cli import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print(sorted(set(sys.modules) & {HEAVY}), file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stderr.strip() == "[]"
    for name in names():
        assert f"  {name} " in result.stdout


@pytest.mark.parametrize("name", names())
def test_every_command_has_help_and_an_example(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert (command(name).help or "").strip()
    examples = re.findall(r"Examples?:\n +(vlre .+)", result.stdout)
    assert examples, f"vlre {name} --help shows no example"
    for line in examples:
        assert shlex.split(line)[:2] == ["vlre", name]


def test_an_unknown_command_is_wrong_usage() -> None:
    result = CliRunner().invoke(main, ["serach"])
    assert result.exit_code == 2
    assert "No such command 'serach'. Did you mean search or" in result.stderr
    words = CliRunner().invoke(main, ["a dog on grass"])
    assert 'Did you mean vlre search "a dog on grass"?' in words.stderr
    assert "Did you mean" not in CliRunner().invoke(main, ["zzzz"]).stderr


def test_the_help_has_a_section_for_every_command_of_ours_and_one_for_plug_ins() -> None:
    shown = CliRunner().invoke(main, ["--help"]).stdout
    listed = re.findall(r"^  ([a-z-]+) ", shown[shown.index("\nData:") :], re.MULTILINE)
    assert sorted(listed) == names()
    assert "More:" not in shown


def failing(error: BaseException) -> Commands:
    @click.command()
    def explode() -> None:
        raise error

    class Failing(Commands):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
            return explode

    return Failing("vlre", params=[click.Option(["--debug"], is_flag=True)])


def test_an_explained_failure_is_two_lines_without_a_traceback() -> None:
    group = failing(VlreError("the cat is on the shard", hint="move the cat"))
    result = CliRunner().invoke(group, ["explode"])
    assert result.exit_code == 1
    assert result.stderr == "Error: the cat is on the shard\nhint: move the cat\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "x.html"), "x.html: No such file or"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 TB"), "not enough memory"),
    ],
)
def test_what_the_machine_refuses_is_explained_too(error: Exception, line: str) -> None:
    result = CliRunner().invoke(failing(error), ["explode"])
    assert result.exit_code == 1
    assert line in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 2
    debugged = CliRunner().invoke(failing(error), ["--debug", "explode"])
    assert debugged.exception is error


def test_a_mistake_of_ours_is_one_line_and_keeps_its_traceback_for_debug() -> None:
    told = CliRunner().invoke(failing(RuntimeError("shapes differ")), ["explode"])
    assert told.exit_code == 1
    assert told.stderr.splitlines() == [
        "Error: unforeseen RuntimeError: shapes differ",
        "hint: this is a fault of vlre; --debug shows where it happened, for a report",
    ]
    debugged = CliRunner().invoke(failing(RuntimeError("no")), ["--debug", "explode"])
    assert isinstance(debugged.exception, RuntimeError)


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(failing(VlreError("no")), ["--debug", "explode"])
    assert isinstance(result.exception, VlreError)


def test_an_interrupt_ends_with_130() -> None:
    result = CliRunner().invoke(failing(KeyboardInterrupt()), ["explode"])
    assert result.exit_code == 130
