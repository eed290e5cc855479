r"""Recall that may be published: exact, both ways, with intervals, splits and a certificate.

    python examples/publishable_recall.py
    python examples/publishable_recall.py "karpathy:dataset_flickr30k.json?images=flickr30k-images" \
        --split test --model Salesforce/blip-itm-base-flickr --rerank 128

It shows what belongs beside a number: how far it may be off, ITC alone and re-ranked, which data
it is of, and whether the model has seen them.
"""

import argparse
from pathlib import Path

from retrieval_engine import Engine
from retrieval_engine.evaluate import Evaluation, RecallSettings
from retrieval_engine.evaluate.certificate import write_certificate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source", nargs="?", default="scenes:60?seed=7", help="pictures with captions"
    )
    parser.add_argument("--split", help="evaluate this one, e.g. test; by ids, never by position")
    parser.add_argument("--model", default="vlre-tiny")
    parser.add_argument("--rerank", type=int, default=8, help="candidates a query for ITM")
    parser.add_argument("--out", type=Path, default=Path("runs/recall"))
    args = parser.parse_args()

    engine = Engine(args.source, store=args.out / "store", model=args.model)
    settings = RecallSettings(split=args.split, rerank=args.rerank)
    evaluation = engine.evaluate(settings=settings)
    for protocol, report in evaluation.results:  # ITC, then ITM + ITC
        print(f"\n{protocol.title}: {report.n_images} images, {report.n_captions} captions")
        intervals = evaluation.intervals(report)  # bootstrapped over images with their captions
        for side in ("image_to_text", "text_to_image"):
            direction = getattr(report, side)
            for k, value in direction.recall.items():
                low, high = getattr(intervals, side)[f"R@{k}"]
                print(f"  {side} R@{k:<2} {value:5.1f}  (95 % of {low:.1f} to {high:.1f})")

    # Has the model seen the gallery? What it was trained on is written beside its weights.
    print(f"\n{told(evaluation)}")

    # The same question of a model that was: name its training set, here the gallery itself.
    leaking = RecallSettings(split=args.split, trained_on=(engine.store_path,))
    print(f"had it been trained on this store: {told(engine.evaluate(settings=leaking))}")

    # All a reviewer needs: hashes of ids, pictures and captions, the encoder, rules, figures.
    certificate = evaluation.certificate()
    write_certificate(args.out / "metrics.json", certificate)
    print(
        f"certificate of {evaluation.gallery.store.fingerprint[:12]}…: {args.out / 'metrics.json'}"
    )


def told(evaluation: Evaluation) -> str:
    """What is known of training pictures in the gallery."""
    leaks = evaluation.leaks
    if not leaks.trained_on:
        return "what the model was trained on is unknown: say so where you publish"
    seen = leaks.shared_contents + leaks.near_duplicates  # by their bytes, and by their pixels
    where = "; ".join(leaks.trained_on)
    return f"{seen} of {evaluation.report.n_images} images are in {where}"


if __name__ == "__main__":
    main()
