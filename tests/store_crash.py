"""Runs writers of a store in processes of their own and kills them with signal 9."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from retrieval_engine.records import Failure
from retrieval_engine.store import StoreWriter, compact_store, merge_stores
from retrieval_engine.testing.store_data import FEATURES, SOURCE, SPEC, add, pictures
from tests.children import in_child

ITEMS = 12
PART_ITEMS = 4
FAILURE = Failure(source=SOURCE, item_id="broken.jpg", uri="/broken.jpg", reason="empty")
Work = Callable[[Path, Callable[[int], None]], object]
_CHANGES = ("os.rename", "os.remove", "os.link")


def finish(path: Path, said: Callable[[int], None] = lambda number: None) -> list[str]:
    """What `vlre encode` does: bring a store to its end; the ids that were not there yet."""
    items = pictures(ITEMS).items
    with StoreWriter.open(path, spec=SPEC, features=FEATURES) as writer:
        missing = [item for item in items if not writer.unchanged(item, SOURCE)]
        for start in range(0, len(missing), PART_ITEMS):
            add(writer, missing[start : start + PART_ITEMS])
            said(len(writer.manifest.parts))
        writer.finish(SOURCE, failures=[FAILURE], seen={item.id for item in items})
    return [item.id for item in missing]


def _in_child(
    path: Path, prepare: Callable[[], None], wait: Callable[[int], None], work: Work = finish
) -> int:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        prepare()
        work(path, lambda number: _say(writing, number))
        os._exit(0)
    os.close(writing)
    wait(child)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    committed = [0, *map(int, os.read(reading, 1000).split())]
    os.close(reading)
    line = {"path": str(path), "ended": status, "committed": committed[-1]}
    sys.stdout.write(json.dumps(line) + "\n")
    return status


def _say(descriptor: int, number: int) -> None:
    os.write(descriptor, b"%d " % number)


def _die_at(moment: int) -> None:
    """Kill this process just before its n-th renaming or deleting of a file."""
    changes = 0

    def hook(event: str, _: object) -> None:
        nonlocal changes
        if event in _CHANGES:
            if changes == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            changes += 1

    sys.addaudithook(hook)


def _moments(template: Path, folder: Path, count: int, work: Work = finish) -> None:
    for moment in range(count):
        path = folder / str(moment)
        shutil.copytree(template, path)
        if _in_child(path, partial(_die_at, moment), lambda child: None, work) == 0:
            return


def _compact(path: Path, said: Callable[[int], None]) -> None:
    compact_store(path)


def _merge(path: Path, said: Callable[[int], None]) -> None:
    merge_stores(sorted(path.parent.glob("part-*")), path)


def _random(template: Path, folder: Path, count: int) -> None:
    rng = random.Random(5)
    begin = time.perf_counter()
    shutil.copytree(template, folder / "whole")
    _in_child(folder / "whole", lambda: None, lambda child: None)
    whole_s = time.perf_counter() - begin
    for number in range(count):
        path = folder / str(number)
        shutil.copytree(template, path)
        delay_s = rng.uniform(0, whole_s) if number else 0.0  # one at least is killed

        def wait(child: int, delay_s: float = delay_s) -> None:
            time.sleep(delay_s)
            os.kill(child, signal.SIGKILL)

        _in_child(path, lambda: None, wait)


def kill(how: str, template: Path, folder: Path, count: int) -> list[dict[str, Any]]:
    """Kill writers that go on with copies of a store in `folder`/0, `folder`/1, …

    Args:
        how: `moments`, at the first `count` changes of directory entries, or at all there are;
            `random`, `count` times after a random while; `compact`, as `moments`, of a compaction;
            `merge` likewise, of merging the stores `folder`/part-* into it.
        template: the store.
        folder: for the copies.
        count: of the kills, at most.

    Returns:
        For each its path, how it ended (0, or minus the signal) and how many parts it said it had
        committed.
    """
    compact = partial(_moments, work=_compact)
    kills: dict[str, Callable[[Path, Path, int], None]] = {
        "moments": _moments,
        "random": _random,
        "compact": compact,
        "merge": partial(_moments, work=_merge),
    }
    ended = in_child(partial(kills[how], template, folder, count))
    assert ended.code == 0, ended.output
    return [json.loads(line) for line in ended.output.splitlines()]
