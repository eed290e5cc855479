"""`vlre encode`: pictures and captions into features."""

from pathlib import Path
from typing import Any

import click

from retrieval_engine.cli.completion import sources
from retrieval_engine.cli.options import (
    adapter_option,
    device_option,
    devices_option,
    dtype_option,
    example,
    fast_decode_option,
    head_option,
    json_option,
    model_option,
    on_option,
    split_option,
    store_option,
)
from retrieval_engine.cli.output import SOME_FAILED


@click.command(epilog=example('vlre encode "scenes:100?seed=7" --store scenes-store'))
@click.argument("source", required=False, shell_complete=sources)
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
@click.option(
    "--shard",
    metavar="N/COUNT",
    help="Only shard N, 1 to COUNT, of the job: items by hash of id, into a store of its own "
    "(embeddings-3-of-64, or {shard} in --store); `vlre store merge` joins them. auto: as "
    "SLURM_ARRAY_TASK_ID or RANK says.",
)
@device_option
@devices_option
@on_option
@dtype_option
@fast_decode_option
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
@adapter_option
@click.option("--allow-missing", is_flag=True, help="Go on without pictures that are listed only.")
@click.option(
    "--dry-run", is_flag=True, help="Time and disk that SOURCE would take, from 100 of its items."
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str | None,
    store: Path,
    head: Path | None,
    only_stale: bool,
    shard: str | None,
    **given: Any,
) -> None:
    """Encode the pictures and captions of SOURCE into a store.

    SOURCE is a folder or kind:argument, e.g. folder:photos, scenes:1000?seed=7,
    flickr8k:/data/flickr8k. A second run encodes only what is new or changed; an interrupted one
    goes on where it stopped. Exit code 3 means: done, but some items failed. With --head and no
    SOURCE, what the head makes of stored features is written beside them; no model is run.
    """
    from retrieval_engine.cli.encode_ways import encode_source, estimate_source, project, renew
    from retrieval_engine.cli.job_shard import shard_of, store_of

    if shard is not None and source is None:
        raise click.UsageError("--shard is a share of a SOURCE: name one.")
    if head is not None:
        if source is not None or only_stale:
            raise click.UsageError("--head projects what is stored: leave SOURCE and others out.")
        project(store, head, as_json=given["as_json"])
        return
    if (source is None) != only_stale:
        raise click.UsageError("Give either a SOURCE or --only-stale.")
    if source is None and (given["devices"] or given["on"] or given["dry_run"]):
        raise click.UsageError("--devices, --on and --dry-run are for a SOURCE.")
    given["shard"] = shard_of(shard)
    store = store_of(given["shard"], store, ctx)
    if source is not None and given["dry_run"]:
        estimate_source(source, store, given)
        return
    report = renew(store, given) if source is None else encode_source(source, store, given)
    if report.failures:
        ctx.exit(SOME_FAILED)
