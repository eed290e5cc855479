"""`vlre index`: features into an index, with its recall measured."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.completion import backends, recipes
from retrieval_engine.cli.options import (
    device_option,
    example,
    head_option,
    index_option,
    json_option,
    split_option,
    store_option,
)

if TYPE_CHECKING:
    from retrieval_engine.index import IndexReport

_HELP = """Build an index over the images of a store, and measure it.

Prints its size, the time of the build, recall@10 against exact search on sampled queries, and the
median time of one search. An index already there stays in use until the new one is whole. A search
finds what is newer than its index all the same; --update makes that quick again.
"""


@click.command(help=_HELP, epilog=example("vlre index --recipe flat"))
@store_option
@index_option
@click.option(
    "--recipe",
    default="auto",
    shell_complete=recipes,
    show_default=True,
    help="flat, hnsw, ivf, each also as -fp16, ivf-sq8, scan-fp16, ivf-scan-fp16; a name in "
    "./indices/recipes; a .toml file; factory:STRING with a faiss factory string; auto chooses by "
    "the number of vectors.",
)
@click.option(
    "--backend",
    shell_complete=backends,
    help="faiss or milvus, or one that is plugged in: its own recipe where none is named.",
)
@click.option(
    "--uri",
    default="",
    help="With --backend milvus: http://HOST:PORT of the server, or a FILE.db of Milvus Lite; "
    "MILVUS_TOKEN in the environment opens it.",
)
@head_option
@split_option
@click.option("--feature", default="itc", show_default=True, help="Image feature to index.")
@device_option
@click.option(
    "--update",
    is_flag=True,
    help="Build nothing: add what is newer in the store, take out what is gone.",
)
@click.option("--verify", is_flag=True, help="Build nothing: check the index against its sums.")
@json_option
def command(
    store: Path,
    index: Path,
    recipe: str,
    backend: str | None,
    uri: str,
    head: Path | None,
    split: str | None,
    feature: str,
    device: str,
    update: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Parse, build, print."""
    from retrieval_engine import Engine
    from retrieval_engine.cli.output import emit, note, progress_bar
    from retrieval_engine.index import open_index

    recipe = _recipe(recipe, backend, uri, builds=not (update or verify))
    if verify:
        manifest = open_index(index, verify=True).manifest
        if as_json:
            emit({"index": str(index), "verified": True, "bytes": manifest.bytes})
        else:
            click.echo(f"{index}: {manifest.items:,} items, every checksum agrees")
        return
    engine = Engine(store=store, index=index, head=head, split=split)
    if update:
        with progress_bar() as progress:
            change = engine.update_index(progress=progress)
        if as_json:
            emit(change.to_json())
        else:
            click.echo(
                f"{index}: {change.added:,} items added, {change.removed:,} removed, "
                f"{change.items:,} now, in {change.seconds:.1f} s"
            )
        for remark in change.remarks:
            note(remark)
        return
    with progress_bar() as progress:
        report = engine.build_index(
            recipe, feature=feature, uri=uri, device=device, progress=progress
        )
    if as_json:
        emit(report.to_json())
    else:
        _print(report)
    for remark in report.remarks:
        note(remark)


def _recipe(recipe: str, backend: str | None, uri: str, *, builds: bool) -> str:
    """The recipe that a backend stands for where none is named."""
    from retrieval_engine.errors import UsageError

    if uri and not builds:
        raise UsageError("`uri` is for building: an index knows where its rows are")
    if backend in (None, "faiss"):
        return recipe
    if recipe != "auto":
        raise UsageError("a recipe names its backend; leave out `backend` or `recipe`")
    return str(backend)


def _print(report: "IndexReport") -> None:
    from rich.table import Table

    from retrieval_engine.cli.output import table_console

    effort = ", ".join(f"{name} {value}" for name, value in report.effort.items())
    asked = f"{report.queries:,} {report.queries_are}"
    filtered = report.filtered_recall_at_10.items()
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("index", report.index),
        ("recipe", f"{report.recipe} ({effort})" if effort else report.recipe),
        ("items", f"{report.items:,}"),
        ("rows", f"{report.rows:,}"),
        ("size", f"{report.bytes / 1e6:,.1f} MB"),
        ("built in", f"{report.seconds:,.1f} s"),
        ("recall@10", f"{report.recall_at_10:.4f} of exact search, asked with {asked}"),
        (
            "  filtered",
            ", ".join(f"{r:.4f} where {100 * float(s):g} % are left" for s, r in filtered),
        ),
        ("p50", f"{report.p50_ms:.3f} ms a query"),
    ):
        table.add_row(f"[bold]{name}[/]", value)
    table_console().print(table)
