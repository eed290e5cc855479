"""A disk that is full after so many bytes, for every command that writes."""

import shutil
from pathlib import Path

from retrieval_engine.errors import StoreNotFound
from retrieval_engine.index import open_index
from tests.campaign.tally import Tally
from tests.campaign.world import World, contents_of, worn_copy
from tests.children import in_child


def fill_disks(world: World, tally: Tally, sizes: int, names: list[str]) -> None:
    """Run each command with `sizes` limits between nothing and all it needs."""
    base = world.root / "disks"
    base.mkdir()
    worn_copy(world, base / "worn")
    for name in names:
        whole = base / "whole"
        _prepare(world, name, base, whole)
        assert in_child(world.commands(whole)[name]).code in (0, 3)
        largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
        shutil.rmtree(whole)
        for number in range(sizes):
            limit = int(largest ** ((number + 0.5) / sizes)) if number else 0
            out = base / "out"
            _prepare(world, name, base, out)
            with tally.trial(f"full disk, {name}", f"{limit:,} bytes"):
                ended = in_child(world.commands(out)[name], file_bytes=limit)
                ended.check_told()
                if ended.code == 1:
                    assert str(out) in ended.output, f"no file is named: {ended.output[-400:]}"
                assert out.exists(), f"the folder around it is gone: {ended.output[-300:]}"
                _check(world, name, base, out)
                again = in_child(world.commands(out)[name])
                assert again.code in (0, 3), f"no second run: {again.output[-400:]}"
            shutil.rmtree(out, ignore_errors=True)


def _prepare(world: World, name: str, base: Path, out: Path) -> None:
    out.mkdir()
    if name == "compact":
        shutil.copytree(base / "worn", out / "store")
    if name == "index":
        shutil.copytree(world.index, out / "index")


def _check(world: World, name: str, base: Path, out: Path) -> None:
    assert not [p for p in out.rglob("*.partial") if p.name.endswith(".partial")], "half a file"
    if name == "compact":
        assert contents_of(out / "store") == contents_of(base / "worn")
    elif name == "index":
        assert open_index(out / "index").items == open_index(world.index).items
    elif name == "encode":
        try:
            contents_of(out / "store")
        except StoreNotFound:
            left = list((out / "store").iterdir()) if (out / "store").exists() else []
            assert not left, f"left of a store that is none: {left}"
    elif name == "search --html" and (out / "page.html").exists():
        assert (out / "page.html").read_text().rstrip().endswith("</html>"), "half a page"
