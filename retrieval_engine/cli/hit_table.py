"""How hits look: to people, in pipes, and as JSON."""

import sys
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.output import emit, on_terminal, shown

if TYPE_CHECKING:
    from retrieval_engine.search import Hits

_WIDEST = 100_000


def print_hits(sections: "list[Hits]", *, as_json: bool, with_query: bool) -> None:
    r"""Print hits: tables on a terminal, one tab-separated line a hit when piped, or JSON lines.

    Ids and uris are printed as they are. Only a tab or a line break in one, which would make
    another column or line of it, stands as `\t`, `\n` or `\r`.

    Args:
        sections: each query with its hits.
        as_json: one JSON object a hit.
        with_query: say which query a hit belongs to.
    """
    if as_json:
        for section in sections:
            query = {"query": section.query} if with_query else {}
            for hit in section:
                emit(query | hit.to_json())
    elif on_terminal():
        _print_tables(sections)
    else:
        for section in sections:
            asked = [_words(section.query)] if with_query else []
            for hit in section:
                cells = [cell(hit.name), _words(hit.sentence), cell(hit.uri)]
                line = "\t".join([*asked, str(hit.rank), f"{hit.score:.4f}", *cells])
                click.echo(line, color=True)  # else click drops what looks like colours


def print_paths(sections: "list[Hits]", *, end: str) -> None:
    """Print the uri of each hit and nothing else, for other programs.

    Args:
        sections: each query with its hits.
        end: what ends each, a line break or NUL.
    """
    for section in sections:
        for hit in section:
            click.echo(hit.uri + end, nl=False, color=True)


def cell(name: str) -> str:
    """A name in a tab-separated line: tabs and line breaks in it stand as escapes."""
    return name.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _words(text: str) -> str:
    return " ".join(text.split())


def _print_tables(sections: "list[Hits]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for section in sections:
        title = Text(shown(section.query))
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("rank", justify="right")
        table.add_column("score", justify="right")
        table.add_column("id", no_wrap=True)
        table.add_column("caption", no_wrap=True, overflow="ellipsis", max_width=60)
        table.add_column("uri", style="dim", no_wrap=True)
        for hit in section:
            text = (Text(shown(cell)) for cell in (hit.title, _words(hit.sentence), hit.uri))
            table.add_row(str(hit.rank), f"{hit.score:.4f}", *text)
        # As wide as it takes: the terminal itself wraps a long path, and copies it in one piece.
        width = Console(width=_WIDEST).measure(table).maximum
        Console(file=sys.stdout, highlight=False, width=max(width, 1)).print(table)
