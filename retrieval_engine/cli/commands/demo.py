"""`vlre demo`: the ordinary commands, one after the other, on pictures drawn for the occasion."""

import shlex
from pathlib import Path

import click

from retrieval_engine.cli.options import UserPath, example

# Seeds of training and validation are in the model card of vlre-tiny; this one is in neither.
UNSEEN_SEED = 20261121
QUERIES = ("a dog on grass", "a red car on the street", "a boat on the water at sunset")


@click.command(epilog=example("vlre demo --pictures 200"))
@click.option(
    "--pictures", type=click.IntRange(min=20), default=1000, show_default=True, help="How many."
)
@click.option(
    "--out",
    type=UserPath(),
    default="demo",
    show_default=True,
    help="Directory for the features, the index and the contact sheet.",
)
@click.pass_context
def command(ctx: click.Context, pictures: int, out: Path) -> None:
    """Draw pictures nobody has seen, encode, index, search and measure them.

    Runs the same commands you would type, and prints each before it runs. The model is vlre-tiny,
    which ships with the package and knows nothing but drawn scenes.
    """
    store, index, sheet = out / "embeddings", out / "index", out / "search.html"
    places = ["--store", str(store), "--index", str(index)]
    group = ctx.find_root().command
    out.mkdir(parents=True, exist_ok=True)
    for line in (
        [
            "encode",
            f"scenes:{pictures}?seed={UNSEEN_SEED}&captions=detailed",
            "--model",
            "vlre-tiny",
            "--store",
            str(store),
        ],
        ["index", *places],
        *(["search", query, "-k", "5", *places] for query in QUERIES),
        ["eval", "--recall", "--store", str(store)],
        ["search", *QUERIES, "-k", "8", *places, "--html", str(sheet), "--quiet"],
    ):
        click.secho(f"\n$ vlre {shlex.join(line)}", bold=True)
        with group.make_context("vlre", list(line), parent=None) as context:
            group.invoke(context)
    click.echo(
        f"\nLook at the contact sheet: {sheet}\n"
        f'Ask something yourself:    vlre search "a girl with an umbrella" --store {store} --index {index}\n'
        'Your own photographs:      vlre search "a dog in the snow" ~/Pictures'
    )
