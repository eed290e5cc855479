r"""Teach a captioner your wording by LoRA, and see on other pictures whether it learned.

    python examples/lora_captions.py
    python examples/lora_captions.py "flickr8k:flickr8k?split=train" "flickr8k:flickr8k?split=test" \
        --model Salesforce/blip-image-captioning-base --lora r=16,alpha=32,targets=text --max-steps 0

It shows training from stored states (the vision tower is not even loaded), an adapter of some
kilobytes, and captions before and after of pictures that training has not seen, with intervals.
"""

import argparse
from pathlib import Path

from retrieval_engine import Engine
from retrieval_engine.caption import CaptionRequest
from retrieval_engine.encoding import EncodeOptions
from retrieval_engine.evaluate.compare.caption_comparison import compare_captions
from retrieval_engine.train.finetune import Task, configure, finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "train", nargs="?", default="scenes:32?seed=8", help="pictures with captions"
    )
    parser.add_argument("test", nargs="?", default="scenes:12?seed=7", help="others to judge by")
    parser.add_argument("--model", default="vlre-tiny")
    parser.add_argument("--lora", default="r=8,alpha=16")
    parser.add_argument("--max-steps", type=int, default=4, help="0: as long as the recipe says")
    parser.add_argument("--out", type=Path, default=Path("runs/lora"))
    args = parser.parse_args()

    # The encoder's states of every picture, once. Captions need no other feature.
    options = EncodeOptions(features=("tokens",))
    engine = Engine(store=args.out / "store", model=args.model)
    for source in (args.train, args.test):
        engine.add(source, options=options)
    before, after = args.out / "before.jsonl", args.out / "after.jsonl"

    train_store = args.out / "train-store"  # of the training pictures alone: test ones stay out
    Engine(store=train_store, model=args.model).add(args.train, options=options)
    steps = {"max_steps": args.max_steps} if args.max_steps else {}
    config = configure(Task.CAPTION, store=str(train_store), lora=args.lora, **steps)
    adapter = args.out / "adapter"
    report = finetune(config, adapter)
    weights = adapter / "adapter_model.safetensors"
    print(f"{report.trainable}; {weights.stat().st_size / 1000:.0f} kB after {report.steps} steps")
    losses = (report.start["caption_loss"], report.final["caption_loss"])
    print("loss of held-out captions {:.3f} -> {:.3f}".format(*losses))

    for out, tuned in ((before, ""), (after, str(adapter))):
        request = CaptionRequest(targets=(args.test,), model=args.model, adapter=tuned, out=out)
        for _ in engine.caption_all(request).run():
            pass
    comparison = compare_captions([str(before), str(after)], args.test)
    print(comparison.markdown())
    print(
        f"captions side by side: {before}, {after}; to merge: vlre merge-adapter {adapter} --out …"
    )


if __name__ == "__main__":
    main()
