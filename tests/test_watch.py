"""`vlre watch` and `vlre up` on a real folder, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.index import build_index, open_index
from retrieval_engine.store import open_store
from retrieval_engine.testing.images import encoded, photo
from tests.serving import wait_until_ready


def picture(folder: Path, name: str, seed: int) -> None:
    """A picture that comes into a folder whole."""
    beside = folder.parent / name
    beside.write_bytes(encoded(photo(seed), "PNG"))
    beside.rename(folder / name)


def until(words: str, lines: Iterable[str]) -> Iterator[str]:
    """Lines up to the one that holds these words."""
    for line in lines:
        yield line
        if words in line:
            return
    raise AssertionError(f"it ended without {words!r}")


@pytest.mark.whole
def test_what_comes_and_goes_is_followed_until_it_is_interrupted(tmp_path: Path) -> None:
    folder, store, index = tmp_path / "pictures", tmp_path / "pictures" / "store", tmp_path / "i"
    folder.mkdir()
    command = ["watch", str(folder), "--store", str(store), "--json"]
    code = "from retrieval_engine.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"VLRE_INDEX": str(index)},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            list(until("waiting for more", process.stderr))  # the folder is empty
            picture(folder, "a.png", 1)
            assert json.loads(process.stdout.readline())["images"]["encoded"] == 1
            build_index(open_store(store), index, recipe="flat")
            (folder / "broken.jpg").write_bytes(b"junk")
            assert json.loads(process.stdout.readline())["images"]["failed"] == 1
            picture(folder, "b.png", 2)
            assert json.loads(process.stdout.readline())["images"]["encoded"] == 1
            said = list(until("1 items added", process.stderr))
            assert sum("broken.jpg" in line for line in said) == 1, "told at each round"
            assert open_index(index).items == 2
            (folder / "a.png").unlink()
            assert json.loads(process.stdout.readline())["removed"] == 1
            process.send_signal(signal.SIGINT)
            assert process.wait(300) == 130
        finally:
            process.kill()
    assert open_store(store).items().column("id").to_pylist() == ["b.png"]


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["watch", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == f"Error: {tmp_path / 'none'} is no folder"


@pytest.mark.whole
def test_up_answers_in_the_browser_and_leaves_no_process_behind(tmp_path: Path) -> None:
    folder, store = tmp_path / "pictures", tmp_path / "store"
    folder.mkdir()
    picture(folder, "a.png", 1)
    code = "from retrieval_engine.cli import main; main()"
    command = ["up", str(folder), "--store", str(store), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            *_, last = until("listening on", process.stderr)
            address = json.loads(last)["message"].removeprefix("listening on ")
            with httpx.Client(base_url=address, timeout=300) as client:
                wait_until_ready(client)
                found = client.post("/api/search", json={"text": "a dog", "k": 5}).json()
            assert [hit["id"] for hit in found["hits"]] == ["a.png"]
            children = psutil.Process(process.pid).children(recursive=True)
            assert children
            process.send_signal(signal.SIGINT)
            process.stderr.read()
            assert process.wait(300) in (0, 130)
            assert not psutil.wait_procs(children, 300)[1]
        finally:
            process.kill()
