"""`vlre encode`: pictures and captions into features."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.options import (
    device_option,
    dtype_option,
    example,
    json_option,
    model_option,
    split_option,
    store_option,
)

if TYPE_CHECKING:
    from retrieval_engine.records import Json

SOME_FAILED = 3
_SHOWN_FAILURES = 5


@click.command(epilog=example('vlre encode "scenes:100?seed=7" --store scenes-store'))
@click.argument("source")
@store_option
@model_option
@click.option(
    "--features",
    default="itc,pooled",
    show_default=True,
    help="Comma-separated: itc (search, recall), pooled (heads), tokens (re-ranking, captions, "
    "fine-tuning; about a megabyte per picture for BLIP ViT-B).",
)
@split_option
@click.option("--limit", type=click.IntRange(min=1), help="Only the first items.")
@device_option
@dtype_option
@click.option(
    "--store-dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="What features are kept in.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Images per forward pass.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Decode workers; default: one per core."
)
@click.option(
    "--worker-kind",
    default="threads",
    show_default=True,
    help="threads, processes or serial.",
)
@click.option(
    "--shard-rows",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Pictures per shard at most; a kill loses less than one shard.",
)
@click.option("--overwrite", is_flag=True, help="Begin a new store in place of the one there.")
@click.option("--allow-missing", is_flag=True, help="Go on without pictures that are listed only.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    source: str,
    store: Path,
    model: str,
    features: str,
    split: str | None,
    limit: int | None,
    device: str,
    dtype: str,
    store_dtype: str,
    batch_size: int | None,
    workers: int | None,
    worker_kind: str,
    shard_rows: int,
    overwrite: bool,
    allow_missing: bool,
    as_json: bool,
) -> None:
    """Encode the pictures and captions of SOURCE into a store.

    SOURCE is a folder or kind:argument, e.g. folder:photos, scenes:1000?seed=7,
    flickr8k:/data/flickr8k. A second run encodes only what is new or changed; an interrupted one
    goes on where it stopped. Exit code 3 means: done, but some items failed.
    """
    from retrieval_engine.cli.output import emit, note, progress_bar
    from retrieval_engine.encode import EncodeOptions, encode
    from retrieval_engine.encoders import open_encoder
    from retrieval_engine.sources import open_source

    options = EncodeOptions(
        features=tuple(name.strip() for name in features.split(",") if name.strip()),
        store_dtype=store_dtype,
        split=split or "",
        limit=limit or 0,
        batch_size=batch_size or 0,
        workers=workers or 0,
        worker_kind=worker_kind,
        part_rows=shard_rows,
        overwrite=overwrite,
    )
    opened = open_source(_allowing_missing(source) if allow_missing else source)
    encoder = open_encoder(model, device=device, dtype=dtype)
    with progress_bar() as progress:
        report = encode(opened, store, encoder=encoder, options=options, progress=progress)
    for line in opened.notes:
        note(line)
    for failure in report.failures[:_SHOWN_FAILURES]:
        note(f"failed: {failure.item_id}: {failure.reason}")
    if len(report.failures) > _SHOWN_FAILURES:
        note(f"failed: {len(report.failures) - _SHOWN_FAILURES} more; see {store}/failures.jsonl")
    if as_json:
        emit(report.to_json())
    else:
        click.echo(summary(report.to_json()))
    if report.failures:
        ctx.exit(SOME_FAILED)


def _allowing_missing(source: str) -> str:
    return f"{source}{'&' if '?' in source else '?'}allow_missing=true"


def summary(report: "Mapping[str, Json]") -> str:
    """The report of an encode run for people, three lines."""
    lines = []
    for modality in ("images", "captions"):
        tally = report[modality]
        if isinstance(tally, dict):
            counts = ", ".join(
                f"{n:,} {what}" for what, n in tally.items() if n or what == "encoded"
            )
            lines.append(f"{modality:9} {counts}")
    lines.append(
        f"store     {report['store']} in {report['seconds']} s, {report['images_per_s']} images/s"
    )
    return "\n".join(lines)
