"""`vlre encode`: pictures and captions into features."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.options import (
    device_option,
    dtype_option,
    example,
    head_option,
    json_option,
    model_option,
    split_option,
    store_option,
)
from retrieval_engine.cli.output import SOME_FAILED

if TYPE_CHECKING:
    from retrieval_engine.encode import EncodeReport


@click.command(epilog=example('vlre encode "scenes:100?seed=7" --store scenes-store'))
@click.argument("source", required=False)
@store_option
@head_option
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
@click.option(
    "--only-stale",
    is_flag=True,
    help="Take no SOURCE: encode again what --model makes stale in the store, and make it its own.",
)
@click.option("--adapter", default="", help="Directory of an adapter for --model.")
@click.option("--allow-missing", is_flag=True, help="Go on without pictures that are listed only.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    source: str | None,
    store: Path,
    head: Path | None,
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
    only_stale: bool,
    adapter: str,
    allow_missing: bool,
    as_json: bool,
) -> None:
    """Encode the pictures and captions of SOURCE into a store.

    SOURCE is a folder or kind:argument, e.g. folder:photos, scenes:1000?seed=7,
    flickr8k:/data/flickr8k. A second run encodes only what is new or changed; an interrupted one
    goes on where it stopped. Exit code 3 means: done, but some items failed. With --head and no
    SOURCE, what the head makes of stored features is written beside them; no model is run.
    """
    from retrieval_engine.cli.output import progress_bar
    from retrieval_engine.cli.projecting import project
    from retrieval_engine.encode import EncodeOptions, encode, open_changed
    from retrieval_engine.encode_stale import encode_stale
    from retrieval_engine.encoders import open_encoder
    from retrieval_engine.encoders.captioning import open_tower

    if head is not None:
        if source is not None or only_stale:
            raise click.UsageError("--head projects what is stored: leave SOURCE and others out.")
        project(store, head, as_json=as_json)
        return
    if (source is None) != only_stale:
        raise click.UsageError("Give either a SOURCE or --only-stale.")
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
    asked = _allowing_missing(source) if source and allow_missing else source
    opened = open_changed(asked, store) if asked else None
    # For `tokens` alone the tower of a captioning checkpoint will do.
    opener = open_tower if options.features == ("tokens",) or only_stale else open_encoder
    encoder = opener(model, device=device, dtype=dtype, adapter=adapter)
    with progress_bar() as progress:
        if opened is None:
            report = encode_stale(
                store, encoder, batch_size=batch_size or 0, workers=workers or 0, progress=progress
            )
        else:
            report = encode(opened, store, encoder=encoder, options=options, progress=progress)
    _tell(report, notes=opened.notes if opened else (), as_json=as_json)
    if report.failures:
        ctx.exit(SOME_FAILED)


def _allowing_missing(source: str) -> str:
    return f"{source}{'&' if '?' in source else '?'}allow_missing=true"


def _tell(report: "EncodeReport", *, notes: Sequence[str], as_json: bool) -> None:
    """The report on stdout; what the source remarked and what failed on stderr."""
    from retrieval_engine.cli.encode_summary import encode_summary
    from retrieval_engine.cli.output import emit, note, note_failures

    for line in notes:
        note(line)
    note_failures(report.failures, f"{report.store}/failures.jsonl")
    if as_json:
        emit(report.to_json())
    else:
        click.echo(encode_summary(report.to_json()))
