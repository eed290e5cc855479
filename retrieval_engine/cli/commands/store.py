"""`vlre store`: look at a store, prove that it is whole, make it whole again, take things out."""

from pathlib import Path

import click

from retrieval_engine.cli.options import StorePath, example, json_option, store_option


@click.group(epilog=example("vlre store info --store embeddings"))
def command() -> None:
    """Look at a store, check it, repair it."""


@command.command(epilog=example("vlre store info --store embeddings"))
@store_option
@json_option
def info(store: Path, as_json: bool) -> None:
    """What a store holds, and which encoder made it."""
    from retrieval_engine.cli.output import emit, tell
    from retrieval_engine.store import describe, open_store

    facts = describe(open_store(store))
    if as_json:
        emit(facts.to_json())
        return
    tell("\n".join(f"{name + ':':<12} {value}" for name, value in facts.lines()))


@command.command(epilog=example("vlre store verify --store embeddings"))
@store_option
@json_option
def verify(store: Path, as_json: bool) -> None:
    """Read and hash every file; exit code 1 when one is damaged."""
    from retrieval_engine.cli.output import emit, tell
    from retrieval_engine.errors import StoreDamaged
    from retrieval_engine.store import REPAIR_HINT, open_store
    from retrieval_engine.store.mirror import shown_store

    opened = open_store(store)
    files = opened.manifest.files()
    size_bytes = sum(entry.size_bytes for entry in files)
    problems = opened.verify()
    if as_json:
        emit({"store": str(store), "files": len(files), "bytes": size_bytes, "problems": problems})
    elif not problems:
        tell(
            f"{shown_store(store)}: {len(files)} files, {size_bytes:,} bytes, all as they were written"
        )
    if problems:
        raise StoreDamaged("\n".join(problems), hint=REPAIR_HINT)


@command.command(epilog=example("vlre store repair --store embeddings"))
@store_option
@json_option
def repair(store: Path, as_json: bool) -> None:
    """Drop damaged files, so that the next encode makes their rows again, and sweep leftovers."""
    from retrieval_engine.cli.output import emit, note, tell
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
        tell(f"dropped: {line}")
    for name in repaired.swept:
        tell(f"deleted: {name}")
    if repaired.problems:
        note("hint: run your `vlre encode` again; it makes what was dropped, and nothing else")
    elif not repaired.swept:
        tell(f"{store}: nothing to repair")


@command.command(epilog=example("vlre store failures --store embeddings"))
@store_option
@json_option
def failures(store: Path, as_json: bool) -> None:
    """Items that could not be encoded, and why."""
    from dataclasses import asdict

    from retrieval_engine.cli.output import emit, note, shown, tell
    from retrieval_engine.store import open_store

    ledger = open_store(store).failures()
    for failure in ledger:
        if as_json:
            emit(asdict(failure))
        else:
            tell("\t".join(map(shown, (failure.item_id, failure.reason, failure.uri))))
    if not ledger:
        note(f"{store}: no failures")


@command.command(epilog=example("vlre store forget folder:photos --store embeddings"))
@click.argument("source")
@store_option
@json_option
def forget(source: str, store: Path, as_json: bool) -> None:
    """Take a source's items out of a store; SOURCE as `vlre store info` names it, or a folder.

    Their features stay until `vlre store compact`, so that encoding them again is free.
    """
    from retrieval_engine.cli.output import emit, tell
    from retrieval_engine.store import forget_source

    count = forget_source(store, source)
    if as_json:
        emit({"store": str(store), "source": source, "forgotten": count})
    else:
        tell(f"{store}: {count:,} items of {source} forgotten")


@command.command(epilog=example("vlre store merge embeddings-*-of-8 --store embeddings"))
@click.argument("parts", nargs=-1, required=True, type=StorePath(), metavar="PART…")
@store_option
@json_option
def merge(parts: tuple[Path, ...], store: Path, as_json: bool) -> None:
    """Join the shards of a job (`vlre encode --shard`), or any stores of one encoder, in --store.

    The parts stay as they are; files are shared with them where the file system can, else copied.
    Run it again when more parts are ready, or when a part has changed: what is in stays. Killed,
    it leaves --store as it was.
    """
    from retrieval_engine.cli.output import emit, note, progress_bar, tell
    from retrieval_engine.store import merge_stores

    with progress_bar() as progress:
        done = merge_stores(parts, store, progress=progress)
    for job in done.jobs:
        if job.missing or job.unfinished:
            note(str(job))
    if any((part / "metrics.json").exists() for part in parts):
        note(
            "metrics.json of a part is about the part: measure the whole with `vlre eval --recall`"
        )
    if as_json:
        emit(done.to_json())
        return
    facts = {
        "in place of earlier ones": done.replaced,
        "removed": done.removed,
        "stores unchanged": done.unchanged,
        "files linked": done.linked,
        "files copied": done.copied,
    }
    more = "".join(f", {count:,} {what}" for what, count in facts.items() if count)
    tell(f"{store}: {done.items:,} items of {done.stores:,} stores{more}")


@command.command(epilog=example("vlre store compact --store embeddings"))
@store_option
@json_option
def compact(store: Path, as_json: bool) -> None:
    """Drop the rows that no item needs any more (superseded, forgotten, …), and join small files.

    Needs as much free space as is left at the end; a kill loses nothing.
    """
    from retrieval_engine.cli.output import emit, tell
    from retrieval_engine.store import compact_store

    done = compact_store(store)
    if as_json:
        emit({"store": str(store), **done.to_json()})
    else:
        tell(
            f"{store}: {done.rows_before:,} rows became {done.rows_after:,}, "
            f"{done.bytes_before:,} bytes {done.bytes_after:,}"
        )
