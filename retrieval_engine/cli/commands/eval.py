"""`vlre eval`: the figures that may be published."""

from pathlib import Path

import click

from retrieval_engine.cli.options import device_option, json_option, split_option, store_option

_HELP = """Measure: Recall@K of a store, or the quality of captions.

\b
  vlre eval --recall --split test
  vlre eval --captions predictions.jsonl --references references.json

Recall is exact: every image against every caption, both directions, no index. Any of an image's
captions counts for image to text; each caption asks for its own image. Of equal scores the lower
index is first; NaN is an error.

Captions are scored by BLEU, ROUGE-L and CIDEr-D as the COCO tools compute them. Both files may be
JSON lines, COCO results or annotations, lists of {"image", "caption"}, or CSV.
"""
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(help=_HELP)
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
@device_option
@click.option("--captions", type=_FILE, help="Predicted captions, one an image.")
@click.option("--references", type=_FILE, help="What people wrote, any number an image.")
@click.option("--allow-missing", is_flag=True, help="Score only what was captioned; say the rest.")
@click.option("--per-image", type=_FILE, help="Write each image's scores here, a JSON line each.")
@click.option(
    "--meteor/--no-meteor", default=True, help="METEOR too, where pycocoevalcap and Java are."
)
@json_option
def command(
    recall: bool,
    store: Path,
    split: str | None,
    ks: tuple[int, ...],
    ties: str,
    device: str,
    captions: Path | None,
    references: Path | None,
    allow_missing: bool,
    per_image: Path | None,
    meteor: bool,
    as_json: bool,
) -> None:
    """Parse, measure, print."""
    if recall == bool(captions):
        raise click.UsageError("say what to measure: --recall, or --captions with --references")
    if captions and not references:
        raise click.UsageError("--captions needs --references: what people wrote")
    if recall:
        _recall(store, split, ks, ties, device, as_json)
    if captions and references:
        _captions((captions, references), allow_missing, per_image, meteor, as_json)


def _recall(
    path: Path, split: str | None, ks: tuple[int, ...], ties: str, device: str, as_json: bool
) -> None:
    from retrieval_engine.cli.figures import print_recall
    from retrieval_engine.cli.output import emit
    from retrieval_engine.evaluate import Ties, evaluate_recall, recall_intervals
    from retrieval_engine.store import open_store

    report = evaluate_recall(
        open_store(path), split=split, ks=sorted(set(ks)), ties=Ties(ties), device=device
    )
    if as_json:
        emit(report.to_json())
    else:
        print_recall(report, recall_intervals(report))


def _captions(
    files: tuple[Path, Path],
    allow_missing: bool,
    per_image: Path | None,
    meteor: bool,
    as_json: bool,
) -> None:
    import json

    from retrieval_engine.cli.figures import print_captions
    from retrieval_engine.cli.output import emit, note
    from retrieval_engine.evaluate import evaluate_captions
    from retrieval_engine.evaluate.caption_metrics.meteor import meteor_is_missing

    if meteor and (reason := meteor_is_missing()):
        note(f"METEOR is left out: {reason}")
        meteor = False
    report = evaluate_captions(*files, allow_missing=allow_missing, with_meteor=meteor)
    if per_image:
        rows = (json.dumps(row, ensure_ascii=False) for row in report.rows())
        per_image.write_text("\n".join(rows) + "\n", encoding="utf-8")
    if as_json:
        emit(report.to_json())
    else:
        print_captions(report)
