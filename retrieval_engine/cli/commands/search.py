"""`vlre search`: words or a picture in, ranked pictures or captions out."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from retrieval_engine.cli.completion import models
from retrieval_engine.cli.options import (
    UserPath,
    any_model_option,
    device_option,
    example,
    head_option,
    index_option,
    json_option,
    split_option,
    store_option,
)

if TYPE_CHECKING:
    from retrieval_engine.search import Hits, Searcher

_HELP = """Find pictures by words or by a picture, and captions by a picture.

Several queries are answered one after the other; `-` reads them from stdin, one a line. A FOLDER
behind them is searched instead of the whole store: what is new in it is encoded first. Without an
index every image of the store is compared. Piped, the output is one tab-separated line a hit:
rank, score, id, caption, uri; of several queries, the query before them. Ids and uris are as they
are but for tabs and line breaks, which stand as \\t and \\n: use -0 where names may hold such.
"""


@click.command(help=_HELP, epilog=example('vlre search "a dog on grass" -k 5'))
@click.argument("queries", metavar="[QUERY]... [FOLDER]", nargs=-1)
@click.option("--image", help="Ask with a picture: a file, http(s)://… or the uri of an item.")
@click.option(
    "--plus", multiple=True, help="Find this as well: words or a picture; 2:WORDS weighs twice."
)
@click.option("--minus", multiple=True, help="Do not find this: words or a picture, weighed alike.")
@click.option("--captions", is_flag=True, help="With --image: find captions, not pictures.")
@click.option("-k", default=10, show_default=True, help="Number of hits.")
@click.option("--offset", default=0, help="Leave out so many of the best: the next page.")
@click.option(
    "--rerank",
    type=click.IntRange(min=1),
    help="Put this many of the nearest pictures in the cross-encoder's order (ITM + ITC).",
)
@click.option(
    "--rerank-model",
    default="",
    shell_complete=models,
    help="With --rerank: another model looks at those pictures, e.g. a real BLIP.",
)
@click.option("--distinct", is_flag=True, help="Leave out near-duplicates of a better hit.")
@click.option(
    "--min-match",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="P",
    help="Leave out what matches the words with a lower probability, e.g. .5; see vlre calibrate.",
)
@click.option(
    "--where",
    metavar="CONDITION",
    help="Only pictures of which this holds, as SQL writes it: \"taken >= '2023-05' and camera like "
    "'iPhone%'\"; vlre store info lists the columns.",
)
@click.option("--vectors", type=UserPath(), help="Ask with text vectors, a .npy.")
@index_option
@store_option
@head_option
@split_option
@json_option
@click.option("--html", type=UserPath(), help="Write a contact sheet to look at.")
@click.option("--paths", is_flag=True, help="Print only where each hit is, one a line.")
@click.option("-0", "null", is_flag=True, help="As --paths, each ended by NUL: for xargs -0.")
@click.option("--quiet", is_flag=True, help="Print no hits; for --html.")
@any_model_option
@device_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    queries: tuple[str, ...],
    image: str | None,
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    vectors: Path | None,
    index: Path,
    as_json: bool,
    html: Path | None,
    paths: bool,
    null: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Parse, search, print."""
    from retrieval_engine.cli.hit_table import print_hits, print_paths
    from retrieval_engine.cli.output import note
    from retrieval_engine.durable import replace_file
    from retrieval_engine.search.contact_sheet import render

    queries, folder = _without_folder(queries, has_other=image is not None or bool(plus))
    _check(queries, image, vectors, plus, minus, given)
    asked = index if ctx.get_parameter_source("index") is not ParameterSource.DEFAULT else None
    searcher = _open(folder, asked, given)
    for line in searcher.notes:
        note(line)
    sections = _ask(searcher, queries, image, vectors, plus, minus, given)
    for line in dict.fromkeys(hits.note for hits in sections if hits.note):
        note(line)
    for hits in sections:
        if not hits and not hits.note and hits.best_match is not None:
            least = given["min_match"]
            said = f"nothing matches {hits.query!r} with a probability of {least:g} or more"
            note(f"{said}; the best has {hits.best_match:.2f}")
    if paths or null:
        print_paths(sections, end="\0" if null else "\n")
    elif not quiet:
        print_hits(sections, as_json=as_json, with_query=len(sections) > 1 or queries == ("-",))
    if html:
        replace_file(html, render(sections).encode())
        note(f"contact sheet: {html}")


def _without_folder(queries: tuple[str, ...], *, has_other: bool) -> tuple[tuple[str, ...], str]:
    """The queries, and the folder behind them; a single word is no folder.

    Raises:
        UsageError: what stands behind them is a path, and no folder is there.
    """
    from retrieval_engine.errors import UsageError

    if len(queries) < (1 if has_other else 2):
        return queries, ""
    last = queries[-1]
    if os.path.isdir(os.path.expanduser(last)):
        return queries[:-1], last
    if last.startswith(("/", "~", "./", "../")) or last.endswith("/"):
        raise UsageError(f"{last} is no folder", hint="the folder to search stands last")
    return queries, ""


def _check(
    queries: tuple[str, ...],
    image: str | None,
    vectors: Path | None,
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    given: dict[str, Any],
) -> None:
    from retrieval_engine.errors import UsageError

    asked_with = sum((bool(queries), image is not None, vectors is not None))
    if asked_with > 1 or not (asked_with or plus or minus):
        raise UsageError(
            "give only one of words, --image and --vectors"
            if asked_with
            else "nothing to search for",
            hint='ask with words, `vlre search "a dog on grass"`, or with --image PATH',
        )
    if (plus or minus) and vectors is not None:
        raise UsageError("--plus and --minus go with words or --image, not with --vectors")
    if given["captions"] and image is None:
        raise UsageError("--captions answers a picture: it needs --image")
    if given["rerank"] and (not queries or plus or minus):
        raise UsageError("--rerank matches words with pictures: it goes with a query in words")
    if given["where"] is not None and not given["where"].strip():
        raise UsageError("--where is empty", hint="leave it out to search all pictures")


def _open(folder: str, index: Path | None, given: dict[str, Any]) -> "Searcher":
    """What answers, over the store or, once it is encoded, the folder."""
    from retrieval_engine import Engine
    from retrieval_engine.cli.output import note_failures, progress_bar

    names = ("store", "head", "split", "model", "device")
    how = {name: given[name] for name in names} | {"index": index}
    if not folder:
        return Engine(**how).searcher()
    with progress_bar() as progress:
        engine = Engine(folder, progress=progress, **how)
    if engine.added:
        note_failures(engine.added.failures, f"{engine.added.store}/failures.jsonl")
    return engine.searcher()


def _ask(
    searcher: "Searcher",
    queries: tuple[str, ...],
    image: str | None,
    vectors: Path | None,
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    given: dict[str, Any],
) -> "list[Hits]":
    from retrieval_engine.search.queries import mix, read_vectors

    names = ("k", "offset", "rerank_model", "captions", "distinct", "min_match", "where")
    how = {name: given[name] for name in names if given[name] is not None}
    how["rerank"] = given["rerank"] or 0
    if vectors is not None:
        rows = read_vectors(vectors)
        sections: list[Hits] = searcher.search(list(rows), **how)
        titles = [f"{vectors.name} {row}" for row in range(len(rows))]
    elif image is not None:
        from retrieval_engine.sources.asked import read_asked

        sections = searcher.search([mix(read_asked(image), plus, minus)], **how)
        titles = [image]
    else:
        texts = _lines_of_stdin() if queries == ("-",) else list(queries) or [""]
        sections = searcher.search([mix(text, plus, minus) for text in texts], **how)
        titles = [hits.query for hits in sections]
    for hits, title in zip(sections, titles, strict=True):
        hits.query = title
    return sections


def _lines_of_stdin() -> list[str]:
    """What is asked, a line each; a byte-order mark and blank lines are left out."""
    from retrieval_engine.errors import UsageError

    with click.open_file("-", "rb") as stdin:
        lines = stdin.read().split(b"\n")
    try:
        texts = [line.decode("utf-8-sig").strip() for line in lines]
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin is not UTF-8: {error.object!r:.60}", hint="convert it, e.g. with iconv -t utf-8"
        ) from error
    if not (found := [text for text in texts if text]):
        raise UsageError("no query on stdin", hint="one query a line")
    return found
