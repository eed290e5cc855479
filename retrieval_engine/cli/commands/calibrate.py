"""`vlre calibrate`: probabilities of a match, for `vlre search --min-match`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.options import (
    device_option,
    example,
    json_option,
    moved_model_option,
    split_option,
    store_option,
)

if TYPE_CHECKING:
    from retrieval_engine.search.matching import Calibration

_HELP = """Calibrate probabilities of a match on the store's own captions.

True pairs of picture and caption against mismatched ones, near ones and words without sense: a logistic fit of what
the cross-encoder says, or of the score where the model has none. Half of the captions are held out
and tell how far the probabilities can be trusted. The result lies beside the features, and
`vlre search --min-match .5` uses it.
"""


@click.command(help=_HELP, epilog=example("vlre calibrate"))
@store_option
@split_option
@click.option("--by", type=click.Choice(["itm", "itc"]), help="[default: itm where there is one]")
@click.option(
    "--captions",
    default=1000,
    show_default=True,
    help="At most so many, one a picture; half are held out.",
)
@click.option("--seed", default=0, show_default=True)
@moved_model_option
@device_option
@json_option
def command(
    store: Path,
    split: str | None,
    by: str | None,
    captions: int,
    seed: int,
    model: str,
    device: str,
    as_json: bool,
) -> None:
    """Parse, calibrate, write, print."""
    from retrieval_engine.cli.output import emit, note, progress_bar
    from retrieval_engine.search.calibrate import CalibrationSettings, calibrate, open_matcher
    from retrieval_engine.search.matching import FILE, MatchBy, save_calibration
    from retrieval_engine.store import open_store

    opened = open_store(store)
    chosen = MatchBy(by) if by else None
    settings = CalibrationSettings(split=split, by=chosen, captions=captions, seed=seed)
    encoder = open_matcher(opened, device=device, model=model)
    with progress_bar() as progress:
        made = calibrate(opened, encoder, settings, progress=progress)
    save_calibration(made, opened.path / FILE)
    if as_json:
        emit(made.to_json())
    else:
        _print(made)
    note(f"calibration: {opened.path / FILE}")


def _print(made: "Calibration") -> None:
    from rich.table import Table

    from retrieval_engine.cli.output import table_console

    assert made.held_out is not None
    curve = made.held_out
    table = Table(title=f"by {made.by.value.upper()}, held-out pairs", title_justify="left")
    for name in ("said", "was", "share of pairs"):
        table.add_column(name, justify="right")
    for said, was, share in zip(curve.said, curve.was, curve.weight, strict=True):
        if share:
            table.add_row(f"{said:.2f}", f"{was:.2f}", f"{share:.1%}")
    console = table_console()
    console.print(table)
    console.print(
        f"calibration error (ECE) {curve.ece:.3f}, Brier {curve.brier:.3f}; at .5 it keeps "
        f"{made.kept:.1%} of true pairs and refuses {made.refused:.1%} of mismatched ones"
    )
