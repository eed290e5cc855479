"""`vlre import-checkpoint`: an original .pth file becomes a directory for `--model`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from retrieval_engine.cli.options import UserPath, json_option


@click.command("import-checkpoint")
@click.argument("file", type=UserPath())
@click.option("--out", type=UserPath(), required=True, help="Directory to make.")
@click.option(
    "--config",
    type=UserPath(),
    help="JSON with what shapes do not tell: heads, eps, image size, normalisation.",
)
@click.option(
    "--vocab",
    type=UserPath(),
    help="vocab.txt, without [DEC] and [ENC].  [default: the one beside FILE, else "
    "bert-base-uncased's from the hub]",
)
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    help="Side in pixels; the position embedding is interpolated.  [default: as in the file]",
)
@click.option(
    "--vision",
    type=UserPath(),
    help="The vision tower's own file (eva_vit_g.pth), for BLIP-2 files saved without it.",
)
@click.option(
    "--base",
    default="",
    help="Of a training loop around transformers: the model it started from, whose config and "
    "tokenizer the result gets.",
)
@json_option
def command(file: Path, out: Path, base: str, as_json: bool, **given: Any) -> None:
    """Turn a checkpoint of BLIP's or LAVIS's own code into a directory for --model.

    FILE is a .pth of BLIP retrieval, captioning or pre-training, or of LAVIS's BLIP-2 Q-Former; or,
    with --base, a .pt of a training loop around transformers (checkpoint_epoch_30.pt). No code in
    it is run. What is left out (momentum copies, queues, …) is listed in the
    directory's vlre-import.json.

    \b
    Example:
      vlre import-checkpoint model_base_retrieval_coco.pth --out models/blip-coco
    """  # noqa: D301 - click reads the backspace
    from retrieval_engine.cli.output import emit, note
    from retrieval_engine.models.import_checkpoint import import_checkpoint

    if base:
        if wrong := [name for name, value in given.items() if value is not None]:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
            raise click.UsageError(f"with --base there is no {options}: the base says it")
        from retrieval_engine.models.import_trained import import_trained

        made = import_trained(file, out, base=base)
        if as_json:
            emit({"out": str(out), **asdict(made)})
        else:
            click.echo(f"{out}: {made.kind} of {made.base}, {made.parameters:,} parameters")
        return
    report = import_checkpoint(file, out, **given)
    if as_json:
        emit({"out": str(out), **asdict(report)})
        return
    click.echo(
        f"{out}: {report.kind}, {report.parameters:,} parameters, {report.image_size} pixels, "
        f"{report.vocabulary_size:,} tokens"
    )
    for rule, names in report.dropped.items():
        note(f"left out: {rule} ({len(names)})")
    if report.image_size != report.stored_image_size:
        note(f"position embedding interpolated from {report.stored_image_size} pixels")
    for line in report.notes:
        note(line)
