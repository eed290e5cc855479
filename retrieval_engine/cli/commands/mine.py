"""`vlre mine`: the nearest wrong images and captions of each caption, to train on."""

from pathlib import Path

import click

from retrieval_engine.cli.options import (
    UserPath,
    example,
    json_option,
    split_option,
    store_option,
)

_HELP = """Mine hard negatives: for each caption the nearest images and captions that are wrong.

Nothing of the same image, of a duplicate of it, or with an equal caption is wrong. The Parquet file
goes to `vlre finetune retrieval --negatives`; mine in the split that is trained on.
"""


@click.command(help=_HELP, epilog=example("vlre mine --out negatives.parquet"))
@store_option
@split_option
@click.option("--out", type=UserPath(dir_okay=False), required=True, help="The Parquet file.")
@click.option("-k", default=10, show_default=True, help="Negatives of each kind for a caption.")
@click.option(
    "--pixels/--no-pixels",
    default=True,
    show_default=True,
    help="Tell near-duplicates by their pixels; without, equal files alone are duplicates.",
)
@json_option
def command(store: Path, split: str | None, out: Path, k: int, pixels: bool, as_json: bool) -> None:
    """Parse, mine, say what was found."""
    from dataclasses import asdict

    from retrieval_engine.cli.output import emit, progress_bar, tell
    from retrieval_engine.search.mine import mine_negatives
    from retrieval_engine.store import open_store

    with progress_bar() as progress:
        found = mine_negatives(
            open_store(store), out, k=k, split=split, pixels=pixels, progress=progress
        )
    if as_json:
        emit(asdict(found) | {"out": str(out)})
        return
    tell(
        f"{found.out}: {found.n_captions:,} captions, {found.n_images:,} false images, "
        f"{found.n_texts:,} false captions"
        + (f"; {found.n_duplicates:,} duplicates left out" if found.n_duplicates else "")
    )
