"""`vlre push`: a checkpoint, adapter, head, index or store to the Hugging Face hub."""

from pathlib import Path

import click

from retrieval_engine.cli.options import UserPath, example, json_option

_HELP = """Push PATH, a checkpoint, adapter, head, index or store, to the hub as USER/NAME.

A card is written from training.json, the certificate and the other records beside it. A store becomes
a data set, which load_dataset opens; its shards go along, so that `vlre pull` brings it back to the
bit. Pictures and thumbnails are never pushed. Stores and indexes tell what your pictures are called,
where they lie and what is said of them: they are private unless you say --public.

Interrupted? The same line again goes on. The token is HF_TOKEN's or that of `hf auth login`.
"""


@click.command(help=_HELP, epilog=example("vlre push heads/mlp me/my-head --dry-run"))
@click.argument("path", type=UserPath())
@click.argument("repo", metavar="USER/NAME")
@click.option(
    "--private/--public",
    default=None,
    help="Who may see a new repository  [default: private for stores and indexes]",
)
@click.option("--message", default="", help="Of the commit.")
@click.option("--dry-run", is_flag=True, help="Write what would be pushed into a folder, no more.")
@click.option("--to", type=UserPath(), help="With --dry-run: the folder  [default: hub/USER/NAME]")
@json_option
def command(
    path: Path,
    repo: str,
    private: bool | None,
    message: str,
    dry_run: bool,
    to: Path | None,
    as_json: bool,
) -> None:
    """Parse, prepare, say what is inside, push, print."""
    from retrieval_engine.cli.output import emit, note
    from retrieval_engine.hub import prepared, push

    if to and not dry_run:
        raise click.UsageError("--to goes with --dry-run")
    with prepared(path, repo) as what:
        note(f"inside this {what.kind}:")
        for line in what.inside:
            note(f"  {line}")
        if dry_run:
            place = to or Path("hub") / repo
            what.write(place)
            said, where = "would be pushed; all of it is in", str(place)
        else:
            said, where = "pushed to", push(what, private=private, message=message)
        if as_json:
            emit({**what.to_json(), "pushed": not dry_run, "where": where})
            return
        click.echo(f"{len(what.files):,} files, {what.size_bytes:,} bytes {said} {where}")
