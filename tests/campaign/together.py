"""Writers and readers at the same time, for a while."""

import os
import time
from collections.abc import Callable

from retrieval_engine.errors import StoreChanged, StoreNotFound
from retrieval_engine.index import open_index
from retrieval_engine.store import open_store
from tests.campaign.tally import Tally
from tests.campaign.world import PICTURES, World
from tests.children import in_child, vlre


def work_together(world: World, tally: Tally, seconds: float) -> None:
    """One writer of a store, one builder of an index, two readers of each."""
    store, index = world.root / "together", world.root / "together-index"
    encode = ("encode", world.pictures, "--model", world.model, "--store", store, "--shard-rows", 4)
    assert in_child(vlre(*encode)).code == 3
    assert in_child(vlre("index", "--store", store, "--index", index)).code == 0
    until = time.monotonic() + seconds

    def write() -> None:
        steps = (("store", "compact", "--store", store), (*encode, "--overwrite"),
                 ("store", "forget", world.pictures, "--store", store), encode)  # fmt: skip
        _repeat(until, *(vlre(*step) for step in steps))

    def build() -> None:
        _repeat(until, vlre("index", "--store", world.store, "--index", index))

    def read_store() -> None:
        while time.monotonic() < until:
            try:
                gallery = open_store(store).gallery()
                assert len(gallery.images("itc")) == len(gallery) <= PICTURES
            except (StoreChanged, StoreNotFound):
                continue

    def read_index() -> None:
        while time.monotonic() < until:
            opened = open_index(index)
            assert len(opened.catalog.entries(range(opened.items))) == PICTURES

    children = {}
    for name, work in (("writer", write), ("builder", build), ("reader of the store", read_store),
                       ("another reader", read_store), ("reader of the index", read_index),
                       ("another of the index", read_index)):  # fmt: skip
        child = os.fork()
        if not child:
            ended = in_child(work)
            os.write(2, ended.output.encode() if ended.code else b"")
            os._exit(min(ended.code, 1) if ended.code >= 0 else 1)
        children[name] = child
    _gather(children, tally)


def _gather(children: dict[str, int], tally: Tally) -> None:
    for name, child in children.items():
        with tally.trial("writers and readers together", name):
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code == 0, f"it ended with {code}"


def _repeat(until: float, *steps: Callable[[], None]) -> None:
    """Run commands in turn while there is time; none may fail but for single items."""
    while True:
        for step in steps:
            if time.monotonic() > until:
                return
            try:
                step()
            except SystemExit as end:
                if end.code not in (0, 3, None):
                    raise
