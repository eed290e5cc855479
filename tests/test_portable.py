"""Nothing that only Linux has is taken for granted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval_engine.locks import FileLock, Taken
from retrieval_engine.machine import free_memory, usable_cores
from retrieval_engine.workers import open_pool

PACKAGE = Path(__file__).parents[1] / "retrieval_engine"
ONLY_UNIX = re.compile(
    r"^\s*(import|from) (fcntl|resource|pwd|grp|termios)\b|sched_getaffinity|SC_AVPHYS"
    r"|os\.(fork|pread|pwrite|getuid|geteuid|register_at_fork|killpg|mkfifo)\b|/proc/"
)


def test_what_only_unix_has_stands_in_one_place() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        if ONLY_UNIX.search(line) and path.name != "machine.py" and path.parent.name != "testing"
    ]
    assert found == []


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS
    assert usable_cores() == os.cpu_count()
    with open_pool("threads") as pool:
        assert [result for _, result in pool.imap(abs, [-1, 2])] == [1, 2]

    def refuse(name: str) -> int:
        raise ValueError(f"unrecognized configuration name: {name}")

    monkeypatch.setattr(os, "sysconf", refuse)
    assert free_memory() is None
    monkeypatch.delattr(os, "sysconf")  # Windows
    assert free_memory() is None
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_rooms_import_without_fcntl() -> None:
    code = (
        "import os, sys\n"
        "sys.modules['fcntl'] = None\n"
        "del os.sched_getaffinity\n"
        "import retrieval_engine.store, retrieval_engine.index, retrieval_engine.workers\n"
        "import retrieval_engine.caption.caption_writer, retrieval_engine.cli.output, filelock\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_a_lock_names_its_owner_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from retrieval_engine.locks import FileLock\n"
        "lock = FileLock(Path(sys.argv[1]))\n"
        "sys.stdout.write('held\\n'); sys.stdout.flush(); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=PACKAGE.parent
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Taken) as taken:
            FileLock(path)
        assert taken.value.owner.startswith(f"process {other.pid} on ")
        other.kill()
        other.wait()
    lock = FileLock(path)
    assert path.read_text().startswith(f"process {os.getpid()} on ")
    with pytest.raises(Taken):
        FileLock(path)  # not even this process has it twice
    lock.release(remove=True)
    lock.release()
    assert not path.exists()
    FileLock(path).release()


def test_a_planted_link_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "x.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"x\.lock"):
        FileLock(tmp_path / "x.lock")
    assert (tmp_path / "victim").read_text() == "precious"
