"""What is printed can be used: by other programs as it is, by a terminal without harm."""

import io
import itertools
import json
import os
import pty
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from rich.progress import Progress, TextColumn

from retrieval_engine.cli import main
from retrieval_engine.cli.output import _BarProgress, _Lines, note, shown
from retrieval_engine.encoding import encode
from retrieval_engine.records import Failure
from retrieval_engine.store import StoreWriter, open_store
from retrieval_engine.testing.images import jpeg
from tests import tiny

ROOT = Path(__file__).parents[1]
NAMES = [
    "Screenshot 2024-05-01 at 3.45.12\u202fPM.jpg",
    "two  spaces.jpg",
    " leading and trailing .jpg",
    "\u3000wide\u00a0.jpg",
    "cafe\u0301 \u00e9.jpg",
    "back\\slash.jpg",
    "quote'\".jpg",
]
NASTY = ["tab\there.jpg", "line\nbreak.jpg", "red\x1b[31m.jpg", "back\u202egpj.jpg", "bell\x07.jpg"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_blip(tmp_path_factory.mktemp("blip")))


def _store(folder: Path, names: list[str], checkpoint: str) -> Path:
    (folder / "p").mkdir(parents=True)
    for i, name in enumerate(names):
        (folder / "p" / name).write_bytes(jpeg(i))
    encode(f"folder:{folder / 'p'}", folder / "s", encoder=checkpoint)
    return folder / "s"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, checkpoint: str) -> Path:
    return _store(tmp_path_factory.mktemp("odd"), NAMES, checkpoint)


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory, checkpoint: str) -> Path:
    return _store(tmp_path_factory.mktemp("nasty"), NASTY, checkpoint)


@pytest.fixture(scope="module")
def asked(odd: Path) -> tuple[str, str]:
    """Options that ask with 400 vectors: a search of its own process that needs no model."""
    rows = open_store(odd).gallery().images("itc", np.float32)[:1, 0]
    np.save(odd.parent / "asked.npy", np.repeat(rows, 400, axis=0))
    return "--vectors", str(odd.parent / "asked.npy")


@pytest.fixture(scope="module")
def one(asked: tuple[str, str]) -> tuple[str, str]:
    """Options that ask with one vector."""
    file = Path(asked[1]).with_name("one.npy")
    np.save(file, np.load(asked[1])[:1])
    return asked[0], str(file)


def _search(store: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(main, ["search", "a dog", "--store", str(store), *arguments])
    assert result.exit_code == 0, result.output
    return result


def test_ids_and_uris_are_printed_as_they_are(odd: Path) -> None:
    rows = [line.split("\t") for line in _search(odd).stdout.split("\n")[:-1]]
    assert sorted(row[2] for row in rows) == sorted(NAMES)
    assert all(Path(row[4]).is_file() and Path(row[4]).name == row[2] for row in rows)
    paths = _search(odd, "--paths").stdout.split("\n")
    assert paths == [row[4] for row in rows] + [""]
    ended = _search(odd, "-0", "-k", "3").stdout
    assert ended == "".join(row[4] + "\0" for row in rows[:3])


def test_tabs_and_line_breaks_make_no_columns_and_lines(nasty: Path) -> None:
    lines = _search(nasty).stdout.split("\n")[:-1]
    assert len(lines) == len(NASTY)
    assert {len(line.split("\t")) for line in lines} == {5}
    ids = {line.split("\t")[2] for line in lines}
    assert {"tab\\there.jpg", "line\\nbreak.jpg", "red\x1b[31m.jpg"} <= ids
    found = _search(nasty, "-0").stdout.split("\0")[:-1]
    assert sorted(Path(path).name for path in found) == sorted(NASTY)
    assert all(Path(path).is_file() for path in found)


def test_xargs_takes_them(nasty: Path, one: tuple[str, str]) -> None:
    search = [sys.executable, str(ROOT / "cli.py"), "search", *one, "--store", str(nasty), "-0"]
    command = f"{shlex.join(search)} | xargs -0 ls -1"
    run = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert run.returncode == 0
    assert run.stdout.count("/p/") == len(NASTY)


def _on_a_terminal(arguments: list[str], columns: int = 40) -> str:
    """What a command writes when stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"}
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        stdout=theirs, stderr=theirs, stdin=theirs, cwd=ROOT, env=environment,
    )  # fmt: skip
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        written += piece
    os.close(ours)
    assert run.wait() == 0, written
    return written.decode().replace("\r\n", "\n")


def test_a_terminal_gets_whole_paths_and_no_control_characters(
    nasty: Path, one: tuple[str, str]
) -> None:
    out = _on_a_terminal(["search", *one, "--store", str(nasty)])
    for name in NASTY:
        uri = shown(f"{nasty.parent}/p/{name}")
        assert f"{uri}" in out, "a path was broken"
        assert len(uri) > 40
    for control in ("\x1b[31m", "\u202e", "\x07"):
        assert control not in out
    lines = _on_a_terminal(["search", *one, "--store", str(nasty), "--json"]).splitlines()
    hits = [json.loads(line) for line in lines if line.startswith("{")]
    assert sorted(hit["item_id"] for hit in hits) == sorted(NASTY)
    assert not any("\u202e" in line for line in lines)


def test_names_in_messages_are_escaped(tmp_path: Path, nasty: Path) -> None:
    bad = tmp_path / "p"
    bad.mkdir()
    (bad / "evil\x1b]0;owned\x07.jpg").write_bytes(b"no picture")
    (bad / "good.jpg").write_bytes(jpeg(1))
    result = CliRunner().invoke(main, ["encode", str(bad), "--store", str(tmp_path / "s")])
    assert result.exit_code == 3
    assert "failed: evil\\x1b]0;owned\\x07.jpg: " in result.stderr
    assert "\x1b" not in result.stderr
    gone = CliRunner().invoke(main, ["store", "info", "--store", str(tmp_path / "a\x1b[2Jb")])
    assert gone.exit_code == 1
    assert gone.stderr.startswith(f"Error: no store at {tmp_path}/a\\x1b[2Jb\n")
    listed = CliRunner().invoke(main, ["store", "failures", "--store", str(tmp_path / "s")])
    assert listed.stdout.count("\n") == 1


def test_what_is_escaped_and_what_is_not() -> None:
    assert shown("a\x1b[0m\x7f\x9b\u2028\u2066b") == "a\\x1b[0m\\x7f\\x9b\\u2028\\u2066b"
    same = "é 日本 \u202f \u00a0 👩‍👩‍👧 \\n"
    assert shown(same) == same
    assert shown("a\tb\nc", keep="\n") == "a\\x09b\nc"


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--paths"]])
def test_a_closed_pipe_is_no_error(odd: Path, asked: tuple[str, str], arguments: list[str]) -> None:
    words = ["search", *asked, "--store", str(odd), *arguments]  # more than a pipe holds
    with subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    ) as run:  # fmt: skip
        assert run.stdout
        assert run.stderr
        assert run.stdout.readline()
        run.stdout.close()
        talk = run.stderr.read().decode()
        assert run.wait() == 0
    assert "Traceback" not in talk
    assert "Broken" not in talk
    assert "Exception ignored" not in talk


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line(odd: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), "store", "info", "--store", str(odd)],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.splitlines()[0] == "Error: writing the output: No space left on device"
    assert len(run.stderr.splitlines()) == 2


def test_a_closed_stdout_and_other_encodings(odd: Path, one: tuple[str, str]) -> None:
    info = f"{sys.executable} {ROOT / 'cli.py'} store info --store {odd}"
    for command in (f"{info} >&-", f"{info} 2>&-", f"PYTHONIOENCODING=ascii {info}"):
        run = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, check=False)
        assert (run.returncode, run.stderr) == (0, b""), command
    search = f"{sys.executable} {ROOT / 'cli.py'} search {shlex.join(one)} --store {odd}"
    ascii_only = f"PYTHONIOENCODING=ascii {search}"
    run = subprocess.run(ascii_only, shell=True, cwd=ROOT, capture_output=True, check=False)
    assert run.returncode == 0
    assert "3.45.12\u202fPM.jpg".encode() in run.stdout


def test_a_huge_k_costs_nothing(odd: Path) -> None:
    begin = time.monotonic()
    assert len(_search(odd, "-k", str(10**9)).stdout.splitlines()) == len(NAMES)
    assert len(_search(odd, "-k", str(10**18)).stdout.splitlines()) == len(NAMES)
    picture = str(odd.parent / "p" / NAMES[1])
    alike = CliRunner().invoke(
        main, ["search", "--image", picture, "-k", str(10**9), "--store", str(odd), "--paths"]
    )
    assert len(alike.stdout.splitlines()) == len(NAMES)
    assert time.monotonic() - begin < 240


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("retrieval_engine.cli.output.time.monotonic", lambda: now)
    lines = _Lines()
    lines.advance(5)  # before any start: nothing
    lines.start("encoding", 1200)
    for _ in range(120):
        now += 1
        lines.advance(10)
    lines.stop()
    lines.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 1,200 …",
        "encoding: 100 of 1,200, 10.0/s",
        "encoding: 400 of 1,200, 10.0/s",
        "encoding: 700 of 1,200, 10.0/s",
        "encoding: 1,000 of 1,200, 10.0/s",
    ]
    lines.start("reading", None)
    lines.detail = " (cuda:0 0.1, cuda:1 0.0)"
    now += 20
    lines.advance(3)
    told = ["reading …", "reading: 3, 0.1/s (cuda:0 0.1, cuda:1 0.0)"]
    assert capsys.readouterr().err.splitlines() == told
    note("a\x1bb")
    assert capsys.readouterr().err == "a\\x1bb\n"


def test_a_bar_shows_what_its_rate_is_made_of() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    now = itertools.count()
    bar = Progress(TextColumn("{task.fields[rate]}"), console=console, get_time=lambda: next(now))
    listener = _BarProgress(bar, console)
    listener.start("encoding", 100)
    listener.detail("cuda:0 7.0, cuda:1 3.0")
    for _ in range(3):
        listener.advance(10)
    assert bar.tasks[0].fields["rate"].endswith("/s (cuda:0 7.0, cuda:1 3.0)")
    listener.start("writing", 100)
    for _ in range(3):
        listener.advance(10)
    assert bar.tasks[0].fields["rate"].endswith("/s")
    listener.stop()


def test_failures_are_listed_one_a_line(tmp_path: Path, nasty: Path) -> None:
    from retrieval_engine.records import Modality

    store = open_store(nasty)
    forms = {m: list(store.features(m).values()) for m in Modality}
    with StoreWriter.open(nasty, spec=store.spec, features=forms) as writer:
        writer.part().commit(
            [Failure(source="s", item_id="a\tb\nc", uri="/a\x1bb", reason="line\nbreak")]
        )
    result = CliRunner().invoke(main, ["store", "failures", "--store", str(nasty)])
    assert result.stdout == "a\\x09b\\x0ac\tline\\x0abreak\t/a\\x1bb\n"
