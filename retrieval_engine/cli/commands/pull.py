"""`vlre pull`: what was pushed to the Hugging Face hub, back onto this machine."""

from pathlib import Path

import click

from retrieval_engine.cli.options import UserPath, example, json_option

_HELP = """Fetch the checkpoint, adapter, head, index or store USER/NAME from the hub.

Every file is compared with the checksums that were pushed. Interrupted? The same line again goes on.
There is no need to pull what only answers: --model, --adapter, --head and --index take USER/NAME.
"""


@click.command(help=_HELP, epilog=example("vlre pull me/my-store --to embeddings"))
@click.argument("repo", metavar="USER/NAME[@REVISION]")
@click.option("--to", type=UserPath(), help="Directory.  [default: NAME]")
@json_option
def command(repo: str, to: Path | None, as_json: bool) -> None:
    """Parse, fetch, check, print."""
    from retrieval_engine.cli.output import emit
    from retrieval_engine.hub import pull
    from retrieval_engine.hub.kinds import kind_of

    folder = pull(repo, to)
    kind = kind_of(folder)
    if as_json:
        emit({"repo": repo, "kind": str(kind), "where": str(folder)})
    else:
        click.echo(f"{folder}: {kind} {repo}, all as it was pushed")
