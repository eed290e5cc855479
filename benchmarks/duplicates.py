"""How well near-duplicates are found: photographs, and copies made of some of them.

    python -m benchmarks.duplicates --photographs DIR [--count 2000] [--copied 160] [--work DIR]
    python -m benchmarks.duplicates --tiny --device cpu       drawn scenes, for a test

DIR is a folder of pictures. Of `--copied` of them six copies are made: resized (.4 to .8), encoded
again (JPEG at quality 30 to 60), cropped by 5 % of each side's length at a random place, cropped by
5 % at every edge, brighter or darker (.7 to 1.35), and all of it at once. Every pair of pictures
made from one photograph is one that should be found, whatever the two copies went through. Pairs of
two photographs count as wrong; the first of them are printed with the figures, to be looked at.
"""

import argparse
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.report import emit
from retrieval_engine.duplicates import DuplicateSettings, find_duplicates
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.models import open_encoder
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import open_store


def resized(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Smaller, by .4 to .8."""
    by = rng.uniform(0.4, 0.8)
    return picture.resize((round(picture.width * by), round(picture.height * by)))


def cropped(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Without 5 % of its width and of its height, taken off at random places."""
    width, height = round(picture.width * 0.95), round(picture.height * 0.95)
    left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
    return picture.crop((left, top, left + width, top + height))


def cropped_around(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Without 5 % at every edge."""
    x, y = round(picture.width * 0.05), round(picture.height * 0.05)
    return picture.crop((x, y, picture.width - x, picture.height - y))


def brightened(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Darker or brighter."""
    factor = rng.choice([rng.uniform(0.7, 0.85), rng.uniform(1.15, 1.35)])
    return ImageEnhance.Brightness(picture).enhance(factor)


def everything(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Cropped, brighter or darker, and smaller."""
    return resized(brightened(cropped(picture, rng), rng), rng)


def as_it_is(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Unchanged: what is encoded again shows it."""
    return picture


KINDS: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "resized": resized,
    "encoded": as_it_is,
    "cropped": cropped,
    "cropped-around": cropped_around,
    "brightness": brightened,
    "all": everything,
}


def make(pictures: Path, out: Path, *, count: int, copied: int) -> None:
    """A folder of photographs and copies, named `NAME@KIND.jpg`; the same on every machine."""
    rng = random.Random(0)
    files = sorted(p for p in pictures.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = rng.sample(files, min(count, len(files)))
    out.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(chosen):
        data = file.read_bytes()
        (out / f"{file.stem}@{file.suffix}").write_bytes(data)
        if number < copied:
            for kind, change in KINDS.items():
                copy = change(decode(data), rng)
                quality = rng.randint(30, 60) if kind in ("encoded", "all") else 90
                copy.save(out / f"{file.stem}@{kind}.jpg", quality=quality)


def drawn(out: Path, count: int) -> Path:
    """Drawn scenes as files: pictures of few things on few grounds, alike on purpose."""
    from retrieval_engine.sources import open_source, read_item

    out.mkdir()
    for number, item in enumerate(open_source(f"scenes:{count}?seed=3").items()):
        decode(read_item(item)).resize((256, 256)).save(out / f"{number}.png")
    return out


def is_whole(name: str) -> bool:
    """Whether a picture has all the pixels of its photograph."""
    kind = name.partition("@")[2].rpartition(".")[0]
    return kind in ("", "encoded", "brightness")


def measure(store: Path, settings: DuplicateSettings) -> None:
    """Print precision and recall over pairs, by what was done to a copy too."""
    started = time.perf_counter()
    report = find_duplicates(open_store(store), settings)
    seconds = time.perf_counter() - started
    ids = open_store(store).gallery().ids
    names = Counter(i.partition("@")[0] for i in ids)
    wanted = sum(n * (n - 1) // 2 for n in names.values())
    right, wrong, by_kind = 0, [], Counter[str]()
    for group in report.groups:
        for one, other in combinations([m.item_id for m in group.members], 2):
            if one.partition("@")[0] != other.partition("@")[0]:
                wrong.append(f"{one} {other}")
                continue
            right += 1
            kinds = sorted(name.partition("@")[2].rpartition(".")[0] for name in (one, other))
            if kinds[0] == "":
                by_kind[kinds[1]] += 1
    copied = sum(n > 1 for n in names.values())
    emit(
        "duplicates",
        images=len(ids),
        photographs=len(names),
        pairs=wanted,
        precision=round(right / max(right + len(wrong), 1), 4),
        recall=round(right / max(wanted, 1), 4),
        recall_by_kind={kind: round(by_kind[kind] / max(copied, 1), 4) for kind in KINDS},
        best_is_whole=round(float(np.mean([is_whole(g.best.item_id) for g in report.groups])), 4),
        groups=len(report.groups),
        candidates=report.n_candidates,
        wrong_pairs=len(wrong),
        wrong=wrong[:20],
        seconds=round(seconds, 2),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def main() -> None:
    """Parse, make copies, encode, find."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--copied", type=int, default=160)
    parser.add_argument("--work", type=Path, help="keep copies and store here, and use them again")
    parser.add_argument("--model", default="vlre-photo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        pictures, model = args.photographs, args.model
        if args.tiny:
            pictures, model = drawn(Path(folder) / "drawn", 24), "vlre-tiny"
            args.count, args.copied = 24, 6
        if not (work / "pictures").is_dir():
            make(pictures, work / "pictures", count=args.count, copied=args.copied)
        encode(
            f"folder:{work / 'pictures'}",
            work / "store",
            encoder=open_encoder(model, device=args.device),
            options=EncodeOptions(features=("itc", "pooled")),
        )
        measure(work / "store", DuplicateSettings())


if __name__ == "__main__":
    main()
