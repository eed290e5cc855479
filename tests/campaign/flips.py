"""One flipped bit in any file: the answer is the same, or it is refused in one line."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from retrieval_engine.models import open_encoder
from tests.campaign.tally import Tally
from tests.campaign.world import QUERY, World
from tests.children import Ended, in_child, vlre

Read = Callable[[], object]


def flip_everything(world: World, tally: Tally, count: int, rng: random.Random) -> None:
    """Flip `count` bits, in turn over every kind of file."""
    kinds = _kinds(world)
    expected: dict[Read, Ended] = {}
    for number in range(count):
        name, (folder, read) = list(kinds.items())[number % len(kinds)]
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        if "/" in name:  # one kind of file of the folder
            files = [path for path in files if path.match(name.partition("/")[2])]
        if read not in expected:
            expected[read] = in_child(read)
        _flip(tally, name, rng.choice(files), read, expected[read], rng)


def _kinds(world: World) -> dict[str, tuple[Path, Read]]:
    """By name the folder whose files are spoilt, and what reads them all."""
    root = world.root / "flips"
    root.mkdir(exist_ok=True)
    for name in ("store", "index", "head", "tuned", "adapter"):
        if not (root / name).exists() and (world.root / name).exists():
            shutil.copytree(world.root / name, root / name)
    store, index, head = root / "store", root / "index", root / "head"
    exact = ("--store", store, "--model", world.model)

    def read_store() -> None:
        vlre_quietly("store", "info", "--store", store)
        vlre_quietly("store", "failures", "--store", store)
        vlre_quietly("eval", "--recall", *exact, "--json")
        vlre("search", QUERY, *exact, "--json")()

    kinds: dict[str, tuple[Path, Read]] = {
        f"store/{pattern}": (store, read_store)
        for pattern in ("store.json", "manifest.json", "failures.jsonl", "images-*.h5",
                        "captions-*.h5", "items-*.parquet")
    }  # fmt: skip
    search = vlre("search", QUERY, "--index", index, "--store", world.store, "--json")
    kinds |= {f"index/{n}": (index, search) for n in ("manifest.json", "*.faiss", "*.arrow")}
    with_head = vlre("search", QUERY, *("--store", world.store, "--head", head), "--json")
    if head.exists():
        kinds |= {f"head/{n}": (head, with_head) for n in ("head.json", "head.safetensors")}
    for name in ("tuned", "adapter"):
        if (root / name).exists():
            kinds[name] = (root / name, _encoding(root / name))
    return kinds


def vlre_quietly(*arguments: object) -> None:
    """A command among others: its failure ends them all."""
    try:
        vlre(*arguments)()
    except SystemExit as end:
        if end.code:
            raise


def _encoding(model: Path) -> Read:
    def read() -> None:
        encoder = open_encoder(str(model), device="cpu", dtype="float32")
        print(encoder.encode_texts([QUERY], ["itc"])["itc"].tolist())  # noqa: T201

    from retrieval_engine.cli import Commands

    class One(Commands):
        """So that an error is told as a command tells it."""

        def invoke(self, ctx: object) -> None:
            read()

    return lambda: One(name="vlre").main(args=["x"])


def _flip(
    tally: Tally, kind: str, file: Path, read: Read, expected: Ended, rng: random.Random
) -> None:
    before = file.read_bytes()
    bit = rng.randrange(8 * len(before))
    with tally.trial(f"bit flips, {kind.partition('/')[0]}", f"bit {bit} of {file}"):
        assert expected.code == 0, expected.output
        data = bytearray(before)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            ended = in_child(read)
        finally:
            file.write_bytes(before)
        ended.check_told()
        same = _without_times(ended.output) == _without_times(expected.output)
        assert ended.code in (1, 2) or same, f"another answer: {ended.output[-500:]}"


def _without_times(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if "seconds" not in line)
