"""`vlre capfilt`: captions added to a noisy corpus, wrong ones taken out."""

from typing import Any

import click

from retrieval_engine.cli.completion import sources
from retrieval_engine.cli.decoding_options import captioning_options, choose_model, read_decoding
from retrieval_engine.cli.options import UserPath, example
from retrieval_engine.cli.output import SOME_FAILED


@click.command(epilog=example('vlre capfilt "scenes:8?seed=7" --out cleaned --beams 3'))
@click.argument("targets", nargs=-1, metavar="[SOURCE]...", shell_complete=sources)
@click.option(
    "--out",
    type=UserPath(file_okay=False),
    required=True,
    help="Directory of the cleaned data set; a run goes on where it stopped.",
)
@click.option(
    "--threshold",
    type=float,
    default=0.5,
    show_default=True,
    help="Least probability of a match; .5 is the head's own decision. Changing it costs nothing.",
)
@click.option("--with-images", is_flag=True, help="Put the pictures into the Parquet file.")
@click.option("--ranker", help="Retrieval checkpoint that filters; default: the model's own head.")
@captioning_options
@click.pass_context
def command(ctx: click.Context, /, targets: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Caption every picture of SOURCE and keep the captions that match (BLIP's CapFilt).

    Both the captions a picture came with and the one written for it must pass the matching head
    (ITM). Without SOURCE the store is cleaned. Captions are sampled as BLIP did, unless --beams is
    given. Writes captions.jsonl, captions.parquet, and dropped.jsonl with the reasons.
    """
    from retrieval_engine.caption.capfilt import CapFiltJob, CapFiltRequest
    from retrieval_engine.cli.output import emit, note, note_failures, progress_bar

    given["sample"] = given["sample"] or given["beams"] is None
    choose_model(targets, given)
    job = CapFiltJob(CapFiltRequest(targets=targets, options=read_decoding(given), **given))
    with progress_bar() as progress:
        report = job.run(progress)
    for line in job.notes:
        note(line)
    note_failures(report.failures)
    if as_json:
        emit(report.to_json())
    else:
        for kind, tally in (("original", report.original), ("synthetic", report.synthetic)):
            click.echo(f"{kind:9} {tally.kept:,} kept, {tally.dropped:,} dropped")
        click.echo(f"pictures  {report.images:,}, {report.empty:,} without a caption left out")
        click.echo(f"written   {report.out}")
    if report.failures:
        ctx.exit(SOME_FAILED)
