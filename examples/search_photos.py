"""Search your photographs: words, a picture, both at once, and a page of what was found.

    python examples/search_photos.py                         # drawn scenes, some seconds
    python examples/search_photos.py ~/Pictures --model vlre-photo

It shows that a folder is encoded once (run it again: nothing is), that every form of a query goes
through one `search`, and that a cross-encoder puts the nearest in a better order.
"""

import argparse
from pathlib import Path

from retrieval_engine import Engine, Mix, build_index, open_store
from retrieval_engine.search.contact_sheet import render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source", nargs="?", default="scenes:60?seed=7", help="a folder, or any source"
    )
    parser.add_argument("--model", default="vlre-tiny", help="vlre-photo, or a BLIP by its hub id")
    parser.add_argument("--query", default="a dog on grass")
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    args = parser.parse_args()

    # Encoded as far as it is new. The store is a folder of HDF5 shards and can be thrown away.
    engine = Engine(args.source, store=args.out / "store", model=args.model)
    assert engine.added
    images = engine.added.images
    print(f"{len(engine)} pictures: {images.encoded} encoded now, {images.reused} before")

    # Words. Scores are cosines: larger is nearer, and only their order means something.
    hits = engine.search(args.query, k=5)
    print(hits)

    # The same with the cross-encoder, which reads the words and each of the nearest together.
    reranked = engine.search(args.query, k=5, rerank=20)
    print(reranked)

    # A picture; by its id, so that it is no answer itself.
    best = hits[0]
    print(
        f"like {best.item_id}:", ", ".join(hit.item_id for hit in engine.similar(best.item_id, k=3))
    )

    # A mix: the words, half as much of that picture, and less of something.
    mixed = engine.search(Mix(((args.query, 1), (Path(best.uri), 0.5), ("a person", -0.5))), k=5)
    print(mixed)

    # An index, for when there are a hundred thousand: the same calls, answered by it.
    report = build_index(open_store(engine.store_path), args.out / "index")
    engine = Engine(store=engine.store_path, index=args.out / "index")
    print(engine.search(args.query, k=1))
    print(f"index {report.recipe}: recall@10 {report.recall_at_10:.3f} of exact search")

    sheet = args.out / "sheet.html"  # one file, pictures inside
    sheet.write_text(render([hits, reranked, mixed]), encoding="utf-8")
    print(f"look at {sheet}")


if __name__ == "__main__":
    main()
