"""`vlre caption`: sentences about pictures."""

from typing import TYPE_CHECKING, Any

import click

from retrieval_engine.cli.decoding_options import captioning_options, read_decoding
from retrieval_engine.cli.options import UserPath, adapter_option, example
from retrieval_engine.cli.output import SOME_FAILED

if TYPE_CHECKING:
    from retrieval_engine.caption import CaptionJob


@click.command(epilog=example('vlre caption "scenes:3?seed=7" --beams 1'))
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@adapter_option
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    help="File that ends in .jsonl, .csv or .json (COCO results); goes on where it stopped.",
)
@click.option("--txt-beside", is_flag=True, help="A .txt beside each picture that has none.")
@click.option("--rank", is_flag=True, help="Order variations by how well they match (ITM).")
@click.option("--ranker", help="Retrieval checkpoint that judges; default: the model's own head.")
@click.option(
    "--explain",
    type=UserPath(dir_okay=False),
    help="Draw where the model looked at each word; one picture.",
)
@captioning_options
@click.pass_context
def command(ctx: click.Context, /, targets: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Write captions for pictures, folders, sources, or (without TARGET) the whole store.

    Stored `tokens` of the same vision tower are used, other pictures are encoded once. A run into
    --out goes on where an earlier one stopped. Exit code 3 means: done, but some pictures failed.
    """
    from retrieval_engine.caption import CaptionJob, CaptionRequest
    from retrieval_engine.cli.output import emit, progress_bar, tell

    request = CaptionRequest(targets=targets, options=read_decoding(given), **given)
    job = CaptionJob(request)
    if request.explain:
        click.echo(job.explain())
        return
    with progress_bar() as progress:
        for row in job.run(progress):
            if as_json:
                emit(row)
            elif not (request.out or request.txt_beside):
                before = "" if request.is_single else f"{row['image']}\t"
                for sentence in row.get("captions", [row["caption"]]):
                    tell(f"{before}{sentence}")
    report(job)
    if job.failures:
        ctx.exit(SOME_FAILED)


def report(job: "CaptionJob") -> None:
    """Say on stderr what was done, what failed and what should be known."""
    from retrieval_engine.cli.output import note, note_failures

    for line in job.notes:
        note(line)
    note_failures(job.failures, f"{job.request.out}.failures.jsonl" if job.request.out else "")
    if not job.request.is_single:
        note(summary(job))


def summary(job: "CaptionJob") -> str:
    """What a run did, one line."""
    counts = [f"{job.captioned:,} captioned", f"{job.encoded:,} encoded"]
    if job.skipped:
        counts.append(f"{job.skipped:,} had captions")
    rate = job.captioned / max(job.seconds, 1e-9)
    return f"{', '.join(counts)} in {job.seconds:.1f} s, {rate:.1f} images/s"
