r"""Do heads help? A linear and an MLP head on stored features, against the encoder as it is.

    python examples/heads.py
    python examples/heads.py "karpathy:dataset_flickr30k.json?images=flickr30k-images" \
        --model Salesforce/blip2-itm-vit-g --train-size 5000

It shows which pictures do what. Training ones shape the weights, validation ones choose the epoch,
and the comparison is on those that no head has seen: of a data set with splits its test split.
"""

import argparse
from pathlib import Path

from retrieval_engine import encode, open_encoder, open_source, open_store
from retrieval_engine.evaluate.compare import compare, open_runs
from retrieval_engine.heads import HeadKind
from retrieval_engine.train.head import HeadRecipe, train_head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source", nargs="?", default="scenes:100?seed=8", help="pictures with captions"
    )
    parser.add_argument("--model", default="vlre-tiny")
    parser.add_argument("--train-size", type=int, default=48, help="pictures to train on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/heads"))
    args = parser.parse_args()

    # One pass of the encoder; `pooled` is what heads read. No picture is touched after this.
    encode(open_source(args.source), args.out / "store", encoder=open_encoder(args.model))
    store = open_store(args.out / "store")

    heads = []
    for kind in HeadKind:
        recipe = HeadRecipe(
            kind=kind, train_size=args.train_size, val_size=args.train_size // 4, epochs=args.epochs
        )
        report = train_head(store, args.out / kind.value, recipe)
        heads.append(str(report.saved.path))
        print(
            f"{kind.value}: {len(report.train)} images to train on, {len(report.val)} to choose "
            f"epoch {report.best_epoch} on; mean recall there {report.best.mean:.1f}"
        )

    # `itc` is the encoder's own projection. Whoever trained on a picture takes it from all.
    splits = set(store.items().column("split").to_pylist())
    runs = open_runs(["itc", *heads], store.path)
    comparison = compare(runs, split="test" if "test" in splits else None)
    seen, unseen = comparison.left_out, comparison.rows[0].images
    print(f"\n{unseen} images that no head has seen ({seen} left out)\n\n{comparison.markdown()}")
    for row in comparison.rows[1:]:
        if row.gain:
            gain, (low, high) = row.gain
            verdict = "no difference is shown" if low <= 0 <= high else "more than chance"
            print(f"{row.name} against itc: {gain:+.1f} ({low:+.1f} to {high:+.1f}), {verdict}")


if __name__ == "__main__":
    main()
