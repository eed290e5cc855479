"""`vlre pretrain`: a BLIP from scratch on any source with captions."""

from pathlib import Path
from typing import Any

import click

from retrieval_engine.cli.options import UserPath, device_option, json_option

_HELP = """Train a BLIP from scratch on SOURCE, any source with captions.

The result is a directory for --model that transformers' BLIP classes load too.

\b
Example:
  vlre pretrain "scenes:400?seed=1" --preset micro --steps 40 --batch-size 32 --out my-blip
"""
_OPTIONS = (
    click.option("--out", type=UserPath(), required=True, help="Directory of the model."),
    click.option("--val-source", default="", help="Data to select on  [default: held-out items]"),
    click.option("--preset", default="tiny", show_default=True, help="micro, tiny, small or base."),
    click.option("--steps", type=int, default=2000, show_default=True, help="Optimiser steps."),
    click.option("--minutes", type=float, default=0.0, help="Stop after this much training time."),
    click.option(
        "--batch-size", type=int, default=128, show_default=True, help="Pictures in a step."
    ),
    click.option(
        "--concept-share",
        type=float,
        default=0.25,
        show_default=True,
        help="Part of the steps in which the vision tower alone learns what is in the pictures.",
    ),
    click.option(
        "--lr",
        "matrix_lr",
        type=float,
        default=4e-3,
        show_default=True,
        help="Muon's peak step in the joint stage.",
    ),
    click.option(
        "--eval-every",
        type=int,
        default=100,
        show_default=True,
        metavar="STEPS",
        help="Steps between validations.",
    ),
    click.option(
        "--patience", type=int, default=0, help="Validations without a gain before stopping."
    ),
    click.option("--tokenizer", default="", help="Directory of a BERT tokenizer  [default: train]"),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Of weights, order and negatives."
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "bfloat16", "float32"]),
        default="auto",
        show_default=True,
        help="Arithmetic under autocast.",
    ),
    click.option(
        "--save-dtype",
        type=click.Choice(["float16", "float32"]),
        default="float16",
        show_default=True,
        help="Of the weights on disk.",
    ),
)


def _options(function: Any) -> Any:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command(help=_HELP)
@click.argument("source")
@_options
@device_option
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same options.")
@click.option(
    "--cache",
    type=UserPath(),
    default=None,
    help="Keep the drawn pictures here for other runs.",
)
@json_option
def command(
    source: str, out: Path, resume: bool, cache: Path | None, as_json: bool, **recipe: Any
) -> None:
    """See the help text above."""
    from dataclasses import asdict

    from retrieval_engine.cli.output import emit, progress_bar
    from retrieval_engine.train.pretrain import PretrainConfig, pretrain

    config = PretrainConfig(source=source, **recipe)
    with progress_bar() as progress:
        report = pretrain(config, out, resume=resume, cache=cache, progress=progress)
    if as_json:
        emit({**asdict(report), "out": str(report.out)})
        return
    click.echo(
        f"{report.out}: {report.parameters:,} weights, step {report.best_step:,} of "
        f"{report.steps:,}, mean recall {report.mean_recall:.1f} %, {report.minutes:.1f} minutes"
    )
