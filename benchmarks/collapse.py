"""Does a BLIP from scratch say one thing over and over? The plain recipe against ours, equal sizes.

    python -m benchmarks.collapse --out collapse                                 10,000 scenes
    python -m benchmarks.collapse --out collapse --source "flickr8k:DIR" --shipped vlre-photo
    python -m benchmarks.collapse --tiny                                         for a test

`plain` is a public tutorial's: ITC and LM, AdamW at 1e-4, one caption a picture, the first 10,000;
`plain, larger step` is the same at the step that suits it; `ours` is what `vlre pretrain` does. All
have the same shape, pictures and passes. `shipped` is a model that is only looked at. A line of JSON
for each; one that is in OUT/results.jsonl already is not trained again, a killed training goes on.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.report import conditions, emit
from retrieval_engine.caption.collapse import study_collapse
from retrieval_engine.records import Json
from retrieval_engine.train.pretrain import PretrainConfig, pretrain

_PLAIN: Mapping[str, Any] = MappingProxyType(
    {"objective": "itc+lm", "optimizer": "adamw", "max_captions": 1, "matrix_lr": 1e-4}
)
SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"plain": _PLAIN, "plain, larger step": {**_PLAIN, "matrix_lr": 1e-3}, "ours": {}}
)
_KEPT = ("loss", "gain_of_the_picture", "entropy", "loss_by_frequency", "verdict")


def measure(options: argparse.Namespace) -> None:
    """Train what is not trained yet, look at each, and print a line."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    done = {(found["source"], found["setting"]): found for found in map(json.loads, lines)}
    wanted = [*options.recipes, *(["shipped"] if options.shipped else [])]
    for name in wanted:
        found = done.get((options.source, name))
        if found is None:
            found = _one(options, name)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found | conditions()) + "\n")
        emit("collapse", **{key: v for key, v in found.items() if key not in conditions()})


def _one(options: argparse.Namespace, name: str) -> dict[str, Any]:
    model, training = options.shipped, {}
    if name != "shipped":
        kind = options.source.partition(":")[0]
        folder = options.out / f"{kind}-{name.replace(', ', '-').replace(' ', '-')}"
        training = _trained(options, name, folder)
        model = str(folder)
    report = study_collapse(
        model, [options.val_source], store=options.out / "none", limit=options.images
    ).to_json()
    ways = report["ways"]
    assert isinstance(ways, dict)
    return {
        "source": options.source,
        "setting": name,
        **training,
        "images": report["images"],
        **{key: report[key] for key in _KEPT},
        "ways": {way: _figures(found) for way, found in ways.items()},
    }


def _figures(way: Any) -> dict[str, Json]:
    names = ("cider", "distinct_captions", "commonest_share", "repetition_rate", "commonest")
    return {name: way[name] for name in names}


def _trained(options: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    config = PretrainConfig(
        source=options.source,
        val_source=options.val_source,
        preset=options.preset,
        width=options.width,
        layers=options.layers,
        limit=options.limit,
        epochs=options.epochs,
        batch_size=options.batch_size,
        eval_every=options.eval_every,
        **SETTINGS[name],
    )
    if not (folder / "training.json").exists():
        going = (folder / "run" / "checkpoint.pt").exists()
        pretrain(config, folder, resume=going, cache=options.out / "drawn")
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))["report"]
    return {
        key: record[key] for key in ("steps", "minutes", "best_step", "mean_recall", "parameters")
    }


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--source", default="scenes:10000?seed=1")
    parser.add_argument("--val-source", default="")
    parser.add_argument("--shipped", default="", help="a model to look at beside: vlre-photo")
    parser.add_argument("--recipes", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--eval-every", type=int, default=150)
    parser.add_argument("--images", type=int, default=200, help="to caption")
    parser.add_argument("--tiny", action="store_true", help="a size for tests")
    options = parser.parse_args()
    if options.tiny:
        options.source, options.val_source = "scenes:40?seed=1", "scenes:10?seed=2"
        options.preset, options.width, options.layers = "micro", 32, 1
        options.epochs, options.batch_size, options.images, options.eval_every = 1, 8, 8, 100
    if not options.val_source:
        scenes = options.source.startswith("scenes:")
        joint = "&" if "?" in options.source else "?"
        options.val_source = "scenes:500?seed=2" if scenes else f"{options.source}{joint}split=val"
    if options.out is not None:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.out = Path(folder)
        measure(options)


if __name__ == "__main__":
    main()
