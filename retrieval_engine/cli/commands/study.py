"""`vlre study`: a whole experiment in one command."""

from pathlib import Path
from typing import Any

import click

from retrieval_engine.cli.completion import sources
from retrieval_engine.cli.options import (
    UserPath,
    device_option,
    example,
    json_option,
    model_option,
    split_option,
    store_option,
)

_SWEEP_EXAMPLE = example("vlre study sweep sweep.toml --out sweep")
_SWEEP_HELP = """Which options of a training validate best? Optuna's sampler looks for them (extra `sweep`).

CONFIG.toml names a command (train-head, finetune retrieval, finetune caption or pretrain), its
options that are [fixed], and those to [search], by the names they have on the command line:

\b
  command = "train-head"
  trials = 30
  [fixed]
  store = "embeddings"
  [search]
  kind = ["linear", "mlp"]
  lr = {low = 1e-4, high = 1e-2, log = true}
  epochs = {low = 5, high = 40}

Trials that validate worse than the median are ended early (`pruning = false` lets them be). No
test split is looked at.
"""
_EXAMPLE = example('vlre study heads --source "scenes:1200?seed=7" --train-size 900 --out study')


@click.group(epilog=_EXAMPLE)
def command() -> None:
    """Whole experiments in one command."""


@command.command(epilog=_EXAMPLE)
@click.option(
    "--source",
    default="scenes:6500?seed=7",
    show_default=True,
    help="Pictures with captions; its splits train, val and test are used where it has them.",
)
@model_option
@click.option(
    "--out",
    type=UserPath(),
    default="study",
    show_default=True,
    help="Store, heads and report go here; a second run goes on where the first stopped.",
)
@click.option("--feature", default="pooled", show_default=True, help="pooled or itc.")
@click.option("--train-size", default=5000, show_default=True, help="Images to train on.")
@click.option(
    "--test-size",
    default=1000,
    show_default=True,
    help="Images to keep for the test, where no split is.",
)
@click.option("--seed", default=0, show_default=True, help="Of split and weights.")
@device_option
@json_option
def heads(out: Path, as_json: bool, **given: Any) -> None:
    """Do heads help? The study of a published notebook, on images that no head has seen.

    Encodes SOURCE, then compares an untrained projection, the encoder's own ITC, the notebook's
    linear head and its "MLP" (the same head trained longer), our linear head with all captions and
    with the first only, and a true MLP. Writes report.html.
    """
    from retrieval_engine.cli.comparison_table import show_comparison
    from retrieval_engine.cli.output import note, progress_bar
    from retrieval_engine.evaluate.study import HeadStudy, study_heads

    with progress_bar() as progress:
        comparison, page = study_heads(HeadStudy(**given), out, progress=progress)
    show_comparison(comparison, "json" if as_json else "")
    note(f"report: {page}")


@command.command(epilog=example('vlre study collapse "scenes:40?seed=3" --model vlre-tiny'))
@click.argument("targets", nargs=-1, metavar="[SOURCE]...", shell_complete=sources)
@model_option
@store_option
@split_option
@click.option("--limit", type=click.IntRange(min=8), default=200, show_default=True)
@click.option("--out", type=UserPath(file_okay=False), help="Write collapse.html here.")
@device_option
@json_option
def collapse(
    targets: tuple[str, ...],
    model: str,
    store: Path,
    split: str | None,
    limit: int,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Does a captioner say one thing over and over, why, and what helps?

    Captions pictures of SOURCE (or of the store) that have captions: greedily, with beams and with
    penalties, and looks at the loss of their true captions, at common and at rare words, with their
    own picture and with another one.
    """
    from retrieval_engine.caption.collapse import study_collapse
    from retrieval_engine.caption.collapse_page import write_collapse_page
    from retrieval_engine.cli.comparison_table import show_collapse
    from retrieval_engine.cli.output import emit, note, progress_bar

    with progress_bar() as progress:
        report = study_collapse(
            model, targets, store=store, split=split, limit=limit, device=device, progress=progress
        )
    if as_json:
        emit(report.to_json())
    else:
        show_collapse(report)
    if out is not None:
        note(f"page: {write_collapse_page(report, out)}")


@command.command(help=_SWEEP_HELP, epilog=_SWEEP_EXAMPLE)
@click.argument("config", metavar="CONFIG.toml", type=UserPath(dir_okay=False))
@click.option(
    "--out",
    type=UserPath(file_okay=False),
    default="sweep",
    show_default=True,
    help="Trials and report go here; started again, or twice at once, it goes on with what is there.",
)
@click.option("--keep-all", is_flag=True, help="Keep what every trial trained, not the best alone.")
@json_option
def sweep(config: Path, out: Path, keep_all: bool, as_json: bool) -> None:
    """See the help text above."""
    from retrieval_engine.cli.output import emit, progress_bar
    from retrieval_engine.cli.sweep_config import read_sweep
    from retrieval_engine.cli.sweep_table import show_sweep
    from retrieval_engine.train.sweep import sweep as run_sweep

    plan, trainer = read_sweep(config)
    with progress_bar() as progress:
        report = run_sweep(plan, out, trainer, keep_all=keep_all, progress=progress)
    if as_json:
        emit(report.to_json())
    else:
        show_sweep(report)
