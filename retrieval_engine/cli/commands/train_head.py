"""`vlre train-head`: a projection head on stored features."""

from pathlib import Path
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
    from retrieval_engine.train.head import HeadRecipe, HeadReport
    from retrieval_engine.train.runlog import OnValidation

_BESIDE_THE_RECIPE = ("store", "out", "preset", "device", "tracker", "as_json")

_HELP = """Train a linear or MLP head on the features of a store; no picture is touched.

It starts at a closed-form solution and keeps the epoch with the best recall on validation images.
Captions of one image are its positives and never its negatives. Use it with `vlre eval --recall --head DIR`, likewise index, search and encode.
"""


@click.command(help=_HELP, epilog=example("vlre train-head --kind mlp --out heads/mlp"))
@store_option
@click.option("--out", type=UserPath(), help="Directory.  [default: heads/KIND]")
@click.option("--kind", type=click.Choice(["linear", "mlp"]), default="linear", show_default=True)
@click.option(
    "--recipe",
    "preset",
    type=click.Choice(["default", "seed"]),
    default="default",
    show_default=True,
    help="seed: the set-up of the notebook Vision-Language_Final_project, to compare with; data options still count.",
)
@click.option("--feature", default="pooled", show_default=True, help="pooled or itc.")
@click.option("--dim", type=int, help="Of the output.  [default: by the widths]")
@click.option("--hidden", type=int, help="Units of an MLP.  [default: 8 * dim, at most 2048]")
@click.option("--dropout", type=float, help="Of an MLP's hidden units.  [default: 0.1]")
@click.option("--residual", is_flag=True, default=None, help="A linear path beside the MLP.")
@click.option("--split", help="Train on it.  [default: train, or all but val and test]")
@click.option("--val-split", help="Select on it.  [default: val, or a part by id]")
@click.option("--train-size", type=int, help="Images to train on at most.  [default: all]")
@click.option("--val-size", type=int, help="Images to select on.  [default: a tenth]")
@click.option("--captions", type=click.Choice(["all", "one", "first"]), help="[default: all]")
@click.option("--epochs", type=int, help="At most.  [default: 20]")
@click.option("--batch-size", type=int, help="Images in a step.  [default: by their number]")
@click.option("--lr", type=float, help="[default: 0.002]")
@click.option("--weight-decay", type=float, help="[default: 0.01]")
@click.option("--loss", type=click.Choice(["infonce", "sigmoid"]), help="[default: infonce]")
@click.option("--hard-negatives", type=int, help="Mined companions of each image.  [default: 0]")
@click.option(
    "--start", type=click.Choice(["closed-form", "random"]), help="[default: closed-form]"
)
@click.option(
    "--beside",
    type=float,
    metavar="WEIGHT",
    help="Compare --feature itc as it is, too, and the head's cosine with this weight.",
)
@click.option("--patience", type=int, help="Epochs without gain; 0 never stops.  [default: 10]")
@click.option(
    "--refit-below", type=int, help="Below so many images train on all in the end.  [default: 500]"
)
@click.option("--seed", type=int, help="[default: 0]")
@tracker_option
@device_option
@json_option
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Parse, train, print."""
    from retrieval_engine.cli.output import emit, note, progress_bar

    with progress_bar() as progress:
        report = train(options, progress=progress)
    if as_json:
        emit(report.to_json())
    else:
        _print(report)
    if report.refitted:
        note("few images: trained once more on training and validation images together")
    if ctx.get_parameter_source("out") is ParameterSource.DEFAULT:
        note(f"try: vlre eval --recall --store {options['store']} --head {report.saved.path}")


def configured(options: dict[str, Any]) -> "HeadRecipe":
    """The recipe that the options say."""
    from retrieval_engine.errors import UsageError
    from retrieval_engine.train.head import notebook_recipe, recipe_of

    choices = {n: value for n, value in options.items() if n not in _BESIDE_THE_RECIPE}
    given = {name: value for name, value in choices.items() if value is not None}
    recipe = recipe_of(given)
    if options["preset"] == "seed":
        fixed = sorted(set(given) - {"kind", "feature", "split", "val_split", "train_size"})
        if refused := [name for name in fixed if name not in ("val_size", "seed")]:
            option = refused[0].replace("_", "-")
            raise UsageError(f"--recipe seed decides --{option} itself: leave it out")
        recipe = notebook_recipe(recipe)
    return recipe


def train(
    options: dict[str, Any],
    *,
    progress: "Progress | None" = None,
    on_validation: "OnValidation | None" = None,
) -> "HeadReport":
    """Train as the options say."""
    from retrieval_engine.store import open_store
    from retrieval_engine.train.head import train_head

    recipe = configured(options)
    return train_head(
        open_store(options["store"]),
        options["out"] or Path("heads") / options["kind"],
        recipe,
        device=options["device"],
        tracker=options["tracker"] or "",
        progress=progress,
        on_validation=on_validation,
    )


def _print(report: "HeadReport") -> None:
    from rich.table import Table

    from retrieval_engine.cli.output import table_console
    from retrieval_engine.metrics.recall import KS

    table = Table(title=f"{report.saved.config.kind} head {report.saved.path}, validation")
    table.add_column("start -> best")
    for k in KS:
        table.add_column(f"R@{k}", justify="right")
    for name in ("image_to_text", "text_to_image"):
        pairs = zip(getattr(report.start, name), getattr(report.best, name), strict=True)
        cells = [f"{before:.1f} -> {after:.1f}" for before, after in pairs]
        table.add_row(name.replace("_", " "), *cells)
    console = table_console()
    console.print(table)
    console.print(
        f"mean recall {report.start.mean:.2f} -> {report.best.mean:.2f} in epoch "
        f"{report.best_epoch} of {report.epochs}; {len(report.train):,} images to train on, "
        f"{len(report.val):,} to select on; {report.seconds:.1f} s"
    )
    if report.without:
        console.print(f"search without a head: {report.without.mean:.2f}")
        if report.without.mean >= report.best.mean:
            console.print("no better than without: try --feature itc --beside 0.5")
