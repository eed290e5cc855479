"""See the package."""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.campaign.disks import fill_disks
from tests.campaign.flips import flip_everything
from tests.campaign.images import mutate_images
from tests.campaign.kills import kill_everything
from tests.campaign.tally import Tally
from tests.campaign.together import work_together
from tests.campaign.world import World, make_world

FULL: dict[str, float] = {"kills": 200, "flips": 500, "disks": 20, "images": 5000, "together": 60}
SHORT: dict[str, float] = {"kills": 5, "flips": 9, "disks": 1, "images": 250, "together": 0.5}
_WRITING = ["encode", "index", "train-head", "finetune", "caption", "compact", "search --html"]
_QUICK = ["index"]


def _everything(world: World) -> None:
    """What only the full campaign spoils: a fine-tuned model and an adapter."""
    from tests.campaign.models import make_adapter, make_tuned

    make_tuned(world)
    make_adapter(world)


def campaign(root: Path, sizes: dict[str, float], seed: int, only: str, *, is_full: bool) -> Tally:
    """Run the trials; each kind has its own random numbers, so that `only` repeats them."""
    tally, world = Tally(), make_world(root, with_head=is_full)
    if is_full:
        _everything(world)
    trials: dict[str, Callable[[float, random.Random], None]] = {
        "kills": lambda n, rng: kill_everything(world, tally, int(n), rng),
        "flips": lambda n, rng: flip_everything(world, tally, int(n), rng),
        "disks": lambda n, rng: fill_disks(world, tally, int(n), _WRITING if is_full else _QUICK),
        "images": lambda n, rng: mutate_images(world, tally, int(n), rng),
        "together": lambda n, rng: work_together(world, tally, n),
    }
    for name, run in trials.items():
        if only in ("", name):
            run(sizes[name], random.Random(f"{seed} {name}"))
            if is_full:  # so far
                sys.stderr.write(tally.markdown() + "\n\n")
    return tally


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign")
    parser.add_argument("--short", action="store_true", help="a few of each, some seconds")
    parser.add_argument("--only", default="", choices=["", *FULL], help="one kind of trial")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full numbers")
    asked = parser.parse_args()
    full = {name: max(1.0, asked.scale * size) for name, size in FULL.items()}
    sizes = SHORT if asked.short else full
    with tempfile.TemporaryDirectory(prefix="vlre-campaign-") as folder:
        tally = campaign(Path(folder), sizes, asked.seed, asked.only, is_full=not asked.short)
    sys.stdout.write(tally.markdown() + "\n")
    for text in tally.fell:
        sys.stdout.write(f"\nFELL {text}\n")
    sys.exit(1 if tally.fell else 0)


if __name__ == "__main__":
    main()
