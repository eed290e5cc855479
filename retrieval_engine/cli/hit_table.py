"""How hits look: to people, in pipes, and as JSON."""

import sys
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.output import emit, table_console

if TYPE_CHECKING:
    from retrieval_engine.search.contact_sheet import Section


def print_hits(sections: "list[Section]", *, as_json: bool, with_query: bool) -> None:
    """Print hits: tables on a terminal, one tab-separated line a hit when piped, or JSON lines.

    Args:
        sections: each query with its hits.
        as_json: one JSON object a hit.
        with_query: say which query a hit belongs to.
    """
    if as_json:
        for section in sections:
            query = {"query": section.title} if with_query else {}
            for hit in section.hits:
                emit(query | hit.to_json())
    elif sys.stdout.isatty():
        _print_tables(sections)
    else:
        for section in sections:
            asked = [section.title] if with_query else []
            for hit in section.hits:
                cells = [str(hit.rank), f"{hit.score:.4f}", hit.name, hit.sentence, hit.uri]
                click.echo("\t".join(" ".join(cell.split()) for cell in [*asked, *cells]))


def _print_tables(sections: "list[Section]") -> None:
    from rich.table import Table
    from rich.text import Text

    for section in sections:
        table = Table(title=Text(section.title), title_justify="left", box=None, pad_edge=False)
        table.add_column("rank", justify="right")
        table.add_column("score", justify="right")
        table.add_column("id", overflow="fold", max_width=32)
        table.add_column("caption", no_wrap=True, overflow="ellipsis", max_width=60)
        table.add_column("uri", style="dim", overflow="fold")
        for hit in section.hits:
            text = (Text(cell) for cell in (hit.name, hit.sentence, hit.uri))
            table.add_row(str(hit.rank), f"{hit.score:.4f}", *text)
        table_console().print(table)
