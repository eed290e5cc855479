"""`vlre caption`: sentences about pictures."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from retrieval_engine.cli.completion import sources
from retrieval_engine.cli.decoding_options import captioning_options, choose_model, read_decoding
from retrieval_engine.cli.options import (
    UserPath,
    adapter_option,
    devices_option,
    example,
    on_option,
)
from retrieval_engine.cli.output import SOME_FAILED

if TYPE_CHECKING:
    from retrieval_engine.caption import CaptionJob, CaptionRequest
    from retrieval_engine.engine import Engine
    from retrieval_engine.progress import Progress


@click.command(epilog=example('vlre caption "scenes:3?seed=7" --beams 1'))
@click.argument("targets", nargs=-1, metavar="[TARGET]...", shell_complete=sources)
@adapter_option
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    help="File that ends in .jsonl, .csv or .json (COCO results); goes on where it stopped.",
)
@click.option("--txt-beside", is_flag=True, help="A .txt beside each picture that has none.")
@click.option("--beside", default="", help="Show another model's captions beside, the original's.")
@click.option("--rank", is_flag=True, help="Order variations by likelihood and match (ITM).")
@click.option("--ranker", help="Retrieval checkpoint that judges; default: the model's own head.")
@click.option(
    "--explain",
    type=UserPath(dir_okay=False),
    help="Draw where the model looked at each word; one picture.",
)
@captioning_options
@devices_option
@on_option
@click.pass_context
def command(
    ctx: click.Context, /, targets: tuple[str, ...], beside: str, as_json: bool, **given: Any
) -> None:
    """Write captions for pictures, folders, sources, or (without TARGET) the whole store.

    Stored `tokens` of the same vision tower are used, other pictures are encoded once. A run into
    --out goes on where an earlier one stopped. Exit code 3 means: done, but some pictures failed.
    """
    from retrieval_engine.caption import CaptionRequest
    from retrieval_engine.cli.output import emit, progress_bar, tell
    from retrieval_engine.engine import Engine

    choose_model(targets, given)
    request = CaptionRequest(targets=targets, options=read_decoding(given), **given)
    engine = Engine(store=request.store)
    job = engine.caption_all(request)
    if request.explain:
        click.echo(job.explain())
        return
    with progress_bar() as progress:
        others = _captions_of(engine, request, beside, progress) if beside else {}
        for row in job.run(progress):
            said = {beside: others.get(row["image"], [])} if beside else {}
            said[request.model] = row.get("captions", [row["caption"]])
            if as_json:
                emit(
                    row
                    | ({"beside": {"model": beside, "captions": said[beside]}} if beside else {})
                )
            elif not (request.out or request.txt_beside):
                before = "" if request.is_single else f"{row['image']}\t"
                for model, sentences in said.items():
                    who = f"{model}\t" if beside else ""
                    for sentence in sentences:
                        tell(f"{before}{who}{sentence}")
    report(job)
    if job.failures:
        ctx.exit(SOME_FAILED)


def _captions_of(
    engine: "Engine", request: "CaptionRequest", model: str, progress: "Progress"
) -> dict[str, list[str]]:
    """What another model says of the same images, by image."""
    if request.out or request.txt_beside or model == request.model:
        raise click.UsageError(
            "--beside shows two models' captions and writes no file: caption with each, then "
            "`vlre compare` the files"
        )
    other = engine.caption_all(replace(request, model=model, adapter=""))
    found = {row["image"]: row.get("captions", [row["caption"]]) for row in other.run(progress)}
    report(other)
    return found


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
