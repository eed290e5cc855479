"""`vlre pretrain`: a BLIP from scratch on any source with captions."""

from typing import TYPE_CHECKING, Any

import click

from retrieval_engine.cli.completion import sources
from retrieval_engine.cli.options import UserPath, device_option, json_option, tracker_option

if TYPE_CHECKING:
    from retrieval_engine.progress import Progress
    from retrieval_engine.train.pretrain.report import PretrainReport
    from retrieval_engine.train.pretrain.run_config import RunConfig
    from retrieval_engine.train.runlog import OnValidation

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
    click.option(
        "--image-size", type=int, default=0, help="Side in pixels  [default: the preset's]"
    ),
    click.option("--width", type=int, default=0, help="Of all towers  [default: the preset's]"),
    click.option(
        "--layers", type=int, default=0, help="Of vision and text alike  [default: the preset's]"
    ),
    click.option(
        "--caption-length", type=int, default=0, metavar="TOKENS", help="At most  [default: 35]"
    ),
    click.option("--limit", type=int, default=0, help="Train on the first pictures only."),
    click.option("--max-captions", type=int, default=0, help="Of each picture, the first ones."),
    click.option(
        "--objective",
        type=click.Choice(["itc+itm+lm+concepts", "itc+itm+lm", "itc+lm"]),
        default="itc+itm+lm+concepts",
        show_default=True,
        help="The losses. Plain itc+lm collapses: see `vlre study collapse`.",
    ),
    click.option(
        "--optimizer",
        type=click.Choice(["muon", "adamw"]),
        default="muon",
        show_default=True,
        help="Of matrices; everything else is AdamW's.",
    ),
    click.option("--steps", type=int, default=2000, show_default=True, help="Optimiser steps."),
    click.option("--epochs", type=int, default=0, help="Passes over the pictures, not --steps."),
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
        default=None,
        help="Peak step in the joint stage  [default: 4e-3 for Muon, 1e-3 for AdamW]",
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


_FROM_BACKBONE = (
    click.option(
        "--backbone",
        default="",
        help="Begin with this frozen backbone (efficientnet-lite0, -lite1, -lite2) and train on "
        "its cached states.",
    ),
    click.option("--backbone-weights", default="", help="Its published weights, a .pth file."),
    click.option("--text-init", default="", help="Directory of a BERT the text side begins with."),
    click.option(
        "--class-names",
        default="",
        help="Names of the backbone's classes, a line each (`imagenet` ships): images of things.",
    ),
)
# Of the recipe from random weights; a run from a backbone has its own.
_SCRATCH_ONLY = (
    *("preset", "image_size", "width", "layers", "caption_length", "limit", "max_captions"),
    *("objective", "optimizer", "epochs", "concept_share", "matrix_lr", "patience", "tokenizer"),
)
_BESIDE_THE_RECIPE = ("out", "resume", "cache", "tracker", "as_json")


def _options(function: Any) -> Any:
    for option in reversed((*_OPTIONS, *_FROM_BACKBONE)):
        function = option(function)
    return function


@click.command(help=_HELP)
@click.argument("source", shell_complete=sources)
@_options
@device_option
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same options.")
@click.option(
    "--cache",
    type=UserPath(),
    default=None,
    help="Keep the drawn pictures here for other runs.",
)
@tracker_option
@json_option
def command(as_json: bool, **options: Any) -> None:
    """See the help text above."""
    from dataclasses import asdict

    from retrieval_engine.cli.output import emit, progress_bar

    with progress_bar() as progress:
        report = train(options, progress=progress)
    if as_json:
        emit({**asdict(report), "out": str(report.out)})
        return
    click.echo(
        f"{report.out}: {report.parameters:,} weights, step {report.best_step:,} of "
        f"{report.steps:,}, mean recall {report.mean_recall:.1f} %, {report.minutes:.1f} minutes"
    )


def configured(options: dict[str, Any]) -> "RunConfig":
    """The config that the options of the command that runs say."""
    recipe = {name: value for name, value in options.items() if name not in _BESIDE_THE_RECIPE}
    if recipe["backbone"]:
        return _from_backbone(recipe)
    from retrieval_engine.train.pretrain import PretrainConfig

    _refuse_both("steps", "epochs")
    if "concepts" not in recipe["objective"]:
        _refuse_both("concept_share", "objective")
    names = ("backbone", "backbone_weights", "text_init", "class_names")
    return PretrainConfig(**{name: value for name, value in recipe.items() if name not in names})


def train(
    options: dict[str, Any],
    *,
    progress: "Progress | None" = None,
    on_validation: "OnValidation | None" = None,
) -> "PretrainReport":
    """Train as the options of the command that runs say."""
    from retrieval_engine.train.pretrain import PretrainConfig, pretrain
    from retrieval_engine.train.pretrain.cached.config import CachedConfig

    run: dict[str, Any] = {"progress": progress, "on_validation": on_validation}
    run |= {"tracker": options["tracker"] or "", "resume": options["resume"]}
    run["cache"], config = options["cache"], configured(options)
    if isinstance(config, CachedConfig):
        from retrieval_engine.train.pretrain.cached.trainer import pretrain_cached

        return pretrain_cached(config, options["out"], **run)
    assert isinstance(config, PretrainConfig)
    return pretrain(config, options["out"], **run)


def _refuse_both(first: str, second: str) -> None:
    source = click.get_current_context().get_parameter_source
    if all(source(name) is not click.core.ParameterSource.DEFAULT for name in (first, second)):
        names = " and ".join(f"--{name.replace('_', '-')}" for name in (first, second))
        raise click.UsageError(f"{names} contradict each other: give one")


def _from_backbone(recipe: dict[str, Any]) -> "RunConfig":
    from retrieval_engine.train.pretrain.cached.config import CachedConfig

    context = click.get_current_context()
    given = {
        name: value
        for name, value in recipe.items()
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    }
    if wrong := [name for name in _SCRATCH_ONLY if name in given]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise click.UsageError(f"with --backbone there is no {names}")
    return CachedConfig(**given)
