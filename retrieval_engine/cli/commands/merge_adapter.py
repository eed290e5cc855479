"""`vlre merge-adapter`: a base and its adapters as one checkpoint."""

from pathlib import Path

import click

from retrieval_engine.cli.options import UserPath, example, json_option


@click.command(epilog=example("vlre merge-adapter my-captions --out my-captioner"))
@click.argument("adapters", nargs=-1, required=True, type=UserPath())
@click.option("--out", type=UserPath(), required=True, help="New checkpoint.")
@click.option("--model", default="", help="Base  [default: the one the adapter names]")
@json_option
def command(adapters: tuple[Path, ...], out: Path, model: str, as_json: bool) -> None:
    """Merge ADAPTERS into their base and write it as a checkpoint of its own.

    Several adapters of one base are added up. What they do not touch keeps its bytes.
    """
    from retrieval_engine.cli.output import emit
    from retrieval_engine.train.merging import merge_adapters

    merge_adapters(adapters, out, base=model)
    if as_json:
        emit({"out": str(out), "adapters": [str(path) for path in adapters]})
        return
    click.echo(f"{out}: {len(adapters)} adapter{'s' if len(adapters) > 1 else ''} merged")
