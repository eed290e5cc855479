"""`vlre store`: look at a store, prove that it is whole, make it whole again."""

from pathlib import Path

import click

from retrieval_engine.cli.options import json_option, store_option


def _help(text: str, example: str) -> str:
    return f"{text}\n\n\b\nExample:\n  {example}"


@click.group(
    help=_help("Look at a store, check it, repair it.", "vlre store info --store embeddings")
)
def command() -> None:
    """Groups the verbs."""


@command.command(
    help=_help(
        "What a store holds, and which encoder made it.", "vlre store info --store embeddings"
    )
)
@store_option
@json_option
def info(store: Path, as_json: bool) -> None:
    """Describe and print."""
    from retrieval_engine.cli.output import emit
    from retrieval_engine.store import describe, open_store

    facts = describe(open_store(store))
    if as_json:
        emit(facts.to_json())
        return
    click.echo("\n".join(f"{name + ':':<13}{value}" for name, value in facts.lines()))


@command.command(
    help=_help(
        "Read and hash every file; exit code 1 when one is damaged.",
        "vlre store verify --store embeddings",
    )
)
@store_option
@json_option
def verify(store: Path, as_json: bool) -> None:
    """Check and print."""
    from retrieval_engine.cli.output import emit
    from retrieval_engine.errors import StoreDamaged
    from retrieval_engine.store import REPAIR_HINT, open_store

    opened = open_store(store)
    files = opened.manifest.files()
    size_bytes = sum(entry.size_bytes for entry in files)
    problems = opened.verify()
    if as_json:
        emit({"store": str(store), "files": len(files), "bytes": size_bytes, "problems": problems})
    elif not problems:
        click.echo(f"{store}: {len(files)} files, {size_bytes:,} bytes, all as they were written")
    if problems:
        raise StoreDamaged("\n".join(problems), hint=REPAIR_HINT)


@command.command(
    help=_help(
        "Drop damaged files, so that the next encode makes their rows again, and sweep leftovers.",
        "vlre store repair --store embeddings",
    )
)
@store_option
@json_option
def repair(store: Path, as_json: bool) -> None:
    """Repair and print."""
    from retrieval_engine.cli.output import emit, note
    from retrieval_engine.store import repair_store

    repaired = repair_store(store)
    if as_json:
        emit(
            {
                "store": str(store),
                "problems": list(repaired.problems),
                "deleted": list(repaired.swept),
            }
        )
        return
    for line in repaired.problems:
        click.echo(f"dropped: {line}")
    for name in repaired.swept:
        click.echo(f"deleted: {name}")
    if repaired.problems:
        note("hint: run your `vlre encode` again; it makes what was dropped, and nothing else")
    elif not repaired.swept:
        click.echo(f"{store}: nothing to repair")


@command.command(
    help=_help(
        "Items that could not be encoded, and why.", "vlre store failures --store embeddings"
    )
)
@store_option
@json_option
def failures(store: Path, as_json: bool) -> None:
    """Read and print."""
    from dataclasses import asdict

    from retrieval_engine.cli.output import emit, note
    from retrieval_engine.store import open_store

    ledger = open_store(store).failures()
    for failure in ledger:
        if as_json:
            emit(asdict(failure))
        else:
            click.echo(f"{failure.item_id}\t{failure.reason}\t{failure.uri}")
    if not ledger:
        note(f"{store}: no failures")
