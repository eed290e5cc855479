"""Filters over what is known of pictures, and pictures that are one.

    python examples/filters_and_duplicates.py                # draws a folder with dates and copies
    python examples/filters_and_duplicates.py ~/Pictures --model vlre-photo --where "camera like 'iPhone%'"

It shows conditions as SQL writes them, read from EXIF when a picture is encoded; groups of
copies that were resized and encoded again, proven by their pixels; and a search without them.
"""

import argparse
import io
from pathlib import Path

from PIL import Image

from retrieval_engine import Engine, open_source, open_store
from retrieval_engine.sources import read_item

EXIF, MADE_BY, MODEL, TAKEN = 0x8769, 0x010F, 0x0110, 0x9003  # as EXIF numbers them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="of pictures; drawn when left out")
    parser.add_argument("--model", default="vlre-tiny")
    parser.add_argument("--query", default="a dog")
    parser.add_argument("--where", default="taken >= '2023-07' and folder = '2023'")
    parser.add_argument("--out", type=Path, default=Path("runs/filters"))
    args = parser.parse_args()

    folder = args.folder or drawn(args.out / "pictures")
    engine = Engine(folder, store=args.out / "store", model=args.model)
    told = open_store(engine.store_path).items().select(["id", "folder", "taken", "camera"])
    print(told.to_pandas().tail(3).to_string(index=False))

    hits = engine.search(args.query, k=5, where=args.where)  # exact, with an index as without
    print(f"\n{args.query!r} where {args.where}:\n{hits}")
    undated = engine.search(args.query, where="taken is null")  # nothing else is true of null
    print("without a date:", *(hit.item_id for hit in undated))

    report = engine.duplicates()  # vectors propose, pixels prove
    print(f"\n{report.groups_told}; {report.copies_told}")
    for group in report.groups[:5]:
        best, *copies = group.members
        print(f"  keep {best.item_id} ({best.width}x{best.height}):", *(c.item_id for c in copies))

    print(f"\nwithout copies: {engine.search(args.query, k=5, distinct=True)}")


def drawn(folder: Path) -> Path:
    """A folder of 24 scenes as a camera names them, half of a later year, and copies of three."""
    for number, item in enumerate(open_source("scenes:24?seed=7&size=128").items()):
        image = Image.open(io.BytesIO(read_item(item)))
        exif = image.getexif()
        exif[MADE_BY], exif[MODEL] = "Apple", "iPhone 12"
        year = 2022 + number % 2
        exif.get_ifd(EXIF)[TAKEN] = f"{year}:{1 + number // 2:02d}:15 12:00:00"
        path = folder / str(year) / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=92, exif=exif)
        if number < 3:  # as a messenger hands it on: smaller, coarser, nameless
            image.resize((96, 96)).save(path.with_name(f"{number:03d}-sent.jpg"), quality=60)
    return folder


if __name__ == "__main__":
    main()
