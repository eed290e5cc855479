"""Kill -9 at a random moment; what was there must be there still, and a rerun must finish."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from retrieval_engine.errors import CheckpointNotFound, IndexFailure, StoreNotFound
from retrieval_engine.heads.saved import load_head
from retrieval_engine.index import open_index
from retrieval_engine.models import open_encoder
from tests.campaign.tally import Tally
from tests.campaign.world import World, contents_of, worn_copy
from tests.children import in_child

SHARES = {
    "encode": 0.25,
    "index": 0.2,
    "train-head": 0.15,
    "finetune": 0.05,
    "caption": 0.15,
    "compact": 0.2,
}


def kill_everything(world: World, tally: Tally, count: int, rng: random.Random) -> None:
    """Kill each command as often as its share of `count` says; those with none are left out."""
    for name, share in SHARES.items():
        if trials := int(share * count + 1e-9):
            Killed(world, tally, name).run(trials, rng)


class Killed:
    """Trials of one command."""

    def __init__(self, world: World, tally: Tally, name: str) -> None:
        self.world, self.tally, self.name = world, tally, name
        self.base = world.root / f"kill-{name}"
        self.base.mkdir()
        if name == "compact":
            worn_copy(world, self.base / "template")

    def run(self, count: int, rng: random.Random) -> None:
        """One run to its end, then `count` that are killed."""
        whole = self.base / "whole"
        self.prepare(whole)
        ended = in_child(self.world.commands(whole)[self.name])
        assert ended.code in (0, 3), ended.output
        for number in range(count):
            delay_s = rng.uniform(0, ended.seconds)
            out = self.base / str(number)
            with self.tally.trial(f"kill -9 {self.name}", f"after {delay_s:.4f} s"):
                self.prepare(out)
                command = self.world.commands(out)[self.name]
                in_child(command, kill_after=delay_s)
                self.between(out)
                again = in_child(self.resumed(command, out))
                again.check_told()
                assert again.code in (0, 3), again.output
                self.same(out, whole)
            shutil.rmtree(out)

    def prepare(self, out: Path) -> None:
        """What is there before the command runs."""
        out.mkdir()
        if self.name == "compact":
            shutil.copytree(self.base / "template", out / "store")
        if self.name == "index":
            shutil.copytree(self.world.index, out / "index")

    def resumed(self, command: Callable[[], None], out: Path) -> Callable[[], None]:
        """The command once more; a training whose killed run left nothing begins anew."""
        if self.name == "finetune" and (out / "tuned").exists():
            shutil.rmtree(out / "tuned")
        return command

    def between(self, out: Path) -> None:
        """What readers find after the kill: the old, the new, or a part of it that is whole."""
        if self.name == "encode":
            try:
                found = contents_of(out / "store")
            except StoreNotFound:
                return
            whole = contents_of(self.base / "whole" / "store")
            assert all(found[name][0] == whole[name][0] for name in found)
        elif self.name == "compact":
            assert contents_of(out / "store") == contents_of(self.base / "template")
        elif self.name == "index":
            try:
                assert open_index(out / "index").items == open_index(self.world.index).items
            except IndexFailure as error:
                raise AssertionError(f"no index after the kill: {error}") from error
        elif self.name == "train-head":
            try:
                load_head(out / "head")
            except CheckpointNotFound:
                return
        elif self.name == "caption" and (out / "captions.jsonl").exists():
            lines = (out / "captions.jsonl").read_bytes().rpartition(b"\n")[0].split(b"\n")
            assert all(json.loads(line)["caption"] for line in lines if line)

    def same(self, out: Path, whole: Path) -> None:
        """After the rerun everything is as if nobody had been killed."""
        if self.name in ("encode", "compact"):
            ours, theirs = contents_of(out / "store"), contents_of(whole / "store")
            assert ours.keys() == theirs.keys()
            for name in ours:
                assert ours[name][:2] == theirs[name][:2]
        elif self.name == "index":
            assert open_index(out / "index").items == open_index(whole / "index").items
            left = {path.name[:5] for path in (out / "index").iterdir()}
            assert left == {"manif", "data-"}, left
        elif self.name == "train-head":
            assert load_head(out / "head").config == load_head(whole / "head").config
        elif self.name == "finetune":
            opened = open_encoder(str(out / "tuned"), device="cpu", dtype="float32")
            assert opened.spec.adapter
        elif self.name == "caption":
            done = [
                sorted(json.loads(line)["image"] for line in text.split("\n")[:-1])
                for text in ((p / "captions.jsonl").read_text() for p in (out, whole))
            ]
            assert done[0] == done[1]
