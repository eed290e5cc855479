"""`vlre eval`: the figures that may be published."""

from pathlib import Path
from typing import Any

import click

from retrieval_engine.cli.completion import models, sources
from retrieval_engine.cli.options import (
    UserPath,
    device_option,
    devices_option,
    example,
    head_option,
    json_option,
    on_option,
    split_option,
    store_option,
)

_HELP = """Measure: Recall@K of a store, or the quality of captions.

\b
  vlre eval --recall --split test
  vlre eval --recall flickr30k:DIR?split=test --model model_base_retrieval_flickr.pth --rerank 128
  vlre eval --captions predictions.jsonl --references references.json

Recall is exact: every image against every caption, both directions, no index. Any of an image's
captions counts for image to text; each caption asks for its own image. Of equal scores the lower
index is first; NaN is an error. A certificate for reviewers is written beside the features. With
SOURCE what the store lacks of it is encoded first, and its items alone are measured.

Captions are scored by BLEU, ROUGE-L and CIDEr-D as the COCO tools compute them. Both files may be
JSON lines, COCO results or annotations, lists of {"image", "caption"}, or CSV.
"""
_FILE = UserPath(dir_okay=False)
_DATASETS = ["auto", "flickr30k", "coco", "flickr8k"]


@click.command(help=_HELP, epilog=example("vlre eval --recall --published flickr8k"))
@click.argument("source", required=False, shell_complete=sources)
@click.option("--recall", is_flag=True, help="Recall@K of the store, both directions.")
@store_option
@split_option
@click.option(
    "-k", "ks", type=click.IntRange(1), multiple=True, default=(1, 5, 10), help="Cutoffs."
)
@click.option(
    "--ties",
    type=click.Choice(["lower-index", "pessimistic", "optimistic"]),
    default="lower-index",
    show_default=True,
    help="Of exactly equal scores: the lower index first, all before the right one, or none.",
)
@click.option(
    "--rerank", type=click.IntRange(1), help="Re-rank so many candidates a query by ITM as well."
)
@click.option(
    "--model",
    default="",
    shell_complete=models,
    help="Of SOURCE, an authors' .pth file too; else where the store's model is now, if it has "
    "moved.",
)
@device_option
@devices_option
@on_option
@click.option(
    "--trained-on",
    type=UserPath(),
    multiple=True,
    help="What the model saw: a store, a model directory, or JSON of ids. Looks for leaks.",
)
@head_option
@click.option("--keep-trained", is_flag=True, help="With --head: leave in what it was trained on.")
@click.option(
    "--positives",
    type=_FILE,
    multiple=True,
    help="What matches besides: ECCV Caption's JSON, Crisscrossed Captions' CSV, or JSON lines. "
    "Adds R-Precision and mAP@R.",
)
@click.option("--out", type=_FILE, help="The certificate; metrics.json in the store by default.")
@click.option("--captions", type=_FILE, help="Predicted captions, one an image.")
@click.option(
    "--references",
    metavar="SOURCE",
    help="What people wrote, any number an image: a file, a source, or a store.",
)
@click.option("--allow-missing", is_flag=True, help="Score only what was captioned; say the rest.")
@click.option("--per-image", type=_FILE, help="Write each image's scores here, a JSON line each.")
@click.option(
    "--meteor/--no-meteor",
    default=None,
    help="METEOR too, an error without Java.  [default: where pycocoevalcap and Java are]",
)
@click.option(
    "--published",
    is_flag=False,
    flag_value="auto",
    type=click.Choice(_DATASETS),
    help="Published figures of the data set beside ours.",
)
@json_option
def command(
    source: str | None,
    recall: bool,
    captions: Path | None,
    references: str | None,
    store: Path,
    head: Path | None,
    out: Path | None,
    published: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Parse, and measure the one or the other."""
    if recall == bool(captions):
        raise click.UsageError("say what to measure: --recall, or --captions with --references")
    if captions and source:
        raise click.UsageError(f"SOURCE {source!r} is of --recall; captions have --references")
    if (given["on"] or given["devices"]) and not (recall and given["rerank"]):
        raise click.UsageError("--on and --devices are for --recall with --rerank")
    if captions and not references:
        raise click.UsageError("--captions needs --references: what people wrote")
    of_captions = {name: given.pop(name) for name in ("allow_missing", "meteor", "per_image")}
    shown: dict[str, Any] = {"published": published, "as_json": as_json}
    if captions and references:
        from retrieval_engine.cli.eval_captions import score_captions

        score_captions(captions, references, split=given["split"], **of_captions, **shown)
        return
    from retrieval_engine.cli.eval_recall import checkpoint_of, encode_missing, measure_recall
    from retrieval_engine.engine import Engine
    from retrieval_engine.evaluate import RecallSettings, Ties

    given["model"] = checkpoint_of(given["model"])
    with Engine(store=store, head=head, model=given["model"], device=given["device"]) as engine:
        name = ""
        if source:
            name = encode_missing(engine, source, tokens=bool(given["rerank"]), on=given["on"])
        given["ks"] = tuple(sorted(set(given["ks"])))
        given["ties"], given["rerank"] = Ties(given["ties"]), given["rerank"] or 0
        measure_recall(engine, RecallSettings(source=name, **given), out=out, **shown)
