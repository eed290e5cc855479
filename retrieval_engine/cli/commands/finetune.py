"""`vlre finetune`: retrieval or captioning on what a store holds."""

import os
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from retrieval_engine.cli.options import (
    UserPath,
    device_option,
    example,
    json_option,
    store_option,
    tracker_option,
)

if TYPE_CHECKING:
    from retrieval_engine.progress import Progress
    from retrieval_engine.train.finetune import FinetuneConfig, FinetuneReport
    from retrieval_engine.train.runlog import OnValidation

_SHARED = (
    store_option,
    click.option("--out", type=UserPath(), required=True, help="Directory of the result."),
    click.option("--model", default="", help="Checkpoint to start from  [default: the store's]"),
    click.option(
        "--from-cache/--from-pixels",
        default=True,
        show_default=True,
        help="Read stored `tokens`, or the pictures, and train the vision tower too.",
    ),
    click.option("--freeze-vision", is_flag=True, help="Do not train it; needs --from-pixels."),
    click.option("--no-augment", is_flag=True, help="Pictures as they are; needs --from-pixels."),
    click.option(
        "--colour-jitter",
        type=float,
        default=None,
        help="Change brightness, contrast and saturation by up to so much; needs --from-pixels.",
    ),
    click.option("--checkpointing", is_flag=True, help="Less memory in the tower, more time."),
    click.option(
        "--lora",
        default="",
        metavar="SPEC",
        help="Train an adapter: r=8,alpha=16,dropout=0.05,targets=PRESET,dora,rslora. Presets: "
        "text, text-self, text-cross, vision, qformer, opt, t5; names of layers too; joined by +.",
    ),
    click.option("--adapter-name", default="default", show_default=True),
    click.option(
        "--quantize",
        type=click.Choice(["8bit", "4bit"]),
        default=None,
        help="Base under an adapter, through bitsandbytes; needs CUDA.",
    ),
    click.option("--preset", default="", help="A published recipe; other options override it."),
    click.option("--epochs", type=int, default=None, help="Passes over the captions."),
    click.option("--max-steps", type=int, default=None, help="End after this many steps."),
    click.option("--batch-size", type=int, default=None, help="Captions in a step."),
    click.option(
        "--micro-batch",
        type=int,
        default=None,
        help="Captions that go through the model at once; less memory, the same gradients.",
    ),
    click.option("--lr", type=float, default=None, help="Peak step  [default: by the width]"),
    click.option("--warmup", type=float, default=None, help="Part of the steps."),
    click.option("--weight-decay", type=float, default=None, help="Of matrices  [default: 0.05]"),
    click.option("--clip", type=float, default=None, help="Largest gradient norm  [default: 1]"),
    click.option("--label-smoothing", type=float, default=None, help="[default: 0.1]"),
    click.option("--eval-every", type=int, default=None, metavar="STEPS", help="[default: a pass]"),
    click.option("--patience", type=int, default=None, help="Validations without gain; 0 is off."),
    click.option("--keep-every", type=int, default=None, metavar="PASSES", help="Kept models."),
    click.option("--seed", type=int, default=None),
    tracker_option,
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="Arithmetic under autocast.",
    ),
    device_option,
    json_option,
)


_OPPOSITES = {"from_cache": "from_pixels", "no_augment": "augment", "no_itm": "itm"}


def _shared(function: Any) -> Any:
    for option in reversed(_SHARED):
        function = option(function)
    return function


@click.group(epilog=example("vlre finetune retrieval --out my-retrieval --max-steps 20"))
def command() -> None:
    """Train a model on a store's captions, from its cached states or from the pictures.

    A killed run goes on when the same command is given again.
    """


@command.command(epilog=example("vlre finetune retrieval --out my-retrieval --max-steps 20"))
@_shared
@click.option("--no-itm", is_flag=True, help="Train the contrastive loss alone.")
@click.option("--queue", type=int, default=None, help="Earlier features as negatives (BLIP).")
@click.option("--momentum", type=float, default=None, help="Of the slow copies (BLIP).")
@click.option(
    "--negatives",
    type=UserPath(dir_okay=False),
    default=None,
    help="Hard negatives of `vlre mine`, which share a batch with their captions.",
)
def retrieval(**options: Any) -> None:
    """Contrastive and matching loss, for search and recall."""
    _run("retrieval", options)


@command.command(
    epilog=example("vlre finetune caption --out my-captions --lora r=8 --max-steps 20")
)
@_shared
@click.option(
    "--captions-per-image",
    type=int,
    default=None,
    help="Captions of an image that share a batch, and its keys and values; with a reward those "
    "that are drawn  [default: 1; 4 with a reward]",
)
@click.option(
    "--select",
    type=click.Choice(["loss", "bleu4", "cider"]),
    default=None,
    help="What the best weights have the best of  [default: loss; cider with a reward]",
)
@click.option(
    "--reward",
    type=click.Choice(["cider"]),
    default=None,
    help="Draw captions, and make likelier what scores better than the image's others. For a model "
    "that the loss has trained.",
)
def caption(**options: Any) -> None:
    """Language-model loss on the tokens after the prompt, or a reward for whole captions."""
    _run("caption", options)


def configured(task: str, options: dict[str, Any]) -> "FinetuneConfig":
    """The config that the options of the command that runs say."""
    from retrieval_engine.train.finetune import Task, configure

    beside = ("store", "out", "tracker", "as_json", "negatives")
    settings = _given({name: value for name, value in options.items() if name not in beside})
    if negatives := options.get("negatives"):
        settings["negatives"] = str(negatives)
    return configure(Task(task), store=str(options["store"]), **settings)


def train(
    task: str,
    options: dict[str, Any],
    *,
    progress: "Progress | None" = None,
    on_validation: "OnValidation | None" = None,
) -> "FinetuneReport":
    """Train as the options of the command that runs say."""
    from retrieval_engine.train.finetune import finetune

    told: dict[str, Any] = {"progress": progress, "on_validation": on_validation}
    config, tracker = configured(task, options), options["tracker"] or ""
    return finetune(config, options["out"], tracker=tracker, **told)


def _run(task: str, options: dict[str, Any]) -> None:
    from retrieval_engine.cli.output import emit, progress_bar

    as_json = options.pop("as_json")
    with progress_bar() as progress:
        report = train(task, options, progress=progress)
    if os.environ.get("RANK", "0") != "0":
        return  # one of several processes under torchrun; the first one tells
    if as_json:
        emit(report.to_json())
        return
    click.echo(f"{report.out}: step {report.best_step:,} of {report.steps:,}, {report.trainable}")
    for name, before in report.start.items():
        click.echo(f"  {name:17} {before:9.4f} -> {report.final[name]:.4f}")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Settings that somebody gave: what an option has by default must not override a preset."""
    context = click.get_current_context()
    given = {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    for name in _OPPOSITES.keys() & given.keys():
        given[_OPPOSITES[name]] = not given.pop(name)
    return given
