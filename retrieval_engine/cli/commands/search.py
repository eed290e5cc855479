"""`vlre search`: words or a picture in, ranked pictures or captions out."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from retrieval_engine.cli.options import (
    UserPath,
    device_option,
    example,
    head_option,
    index_option,
    json_option,
    moved_model_option,
    split_option,
    store_option,
)

if TYPE_CHECKING:
    from retrieval_engine.search import SearchEngine
    from retrieval_engine.search.contact_sheet import Section

_HELP = """Find pictures by words or by a picture, and captions by a picture.

Several queries are answered one after the other; `-` reads them from stdin, one a line. Without an
index every image of the store is compared. Piped, the output is one tab-separated line a hit:
rank, score, id, caption, uri; of several queries, the query before them. Ids and uris are as they
are but for tabs and line breaks, which stand as \\t and \\n: use -0 where names may hold such.
"""


@click.command(help=_HELP, epilog=example('vlre search "a dog on grass" -k 5'))
@click.argument("queries", metavar="[QUERY]...", nargs=-1)
@click.option("--image", help="Ask with a picture: a file, http(s)://… or the uri of an item.")
@click.option("--captions", is_flag=True, help="With --image: find captions, not pictures.")
@click.option("-k", default=10, show_default=True, help="Number of hits.")
@click.option(
    "--rerank",
    type=click.IntRange(min=1),
    help="Put this many of the nearest pictures in the cross-encoder's order (ITM + ITC).",
)
@click.option(
    "--rerank-model",
    default="",
    help="With --rerank: another model looks at those pictures, e.g. a real BLIP.",
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
@moved_model_option
@device_option
@click.pass_context
def command(
    ctx: click.Context,
    queries: tuple[str, ...],
    image: str | None,
    captions: bool,
    k: int,
    rerank: int | None,
    rerank_model: str,
    vectors: Path | None,
    index: Path,
    store: Path,
    head: Path | None,
    split: str | None,
    as_json: bool,
    html: Path | None,
    paths: bool,
    null: bool,
    quiet: bool,
    model: str,
    device: str,
) -> None:
    """Parse, search, print."""
    from retrieval_engine.cli.hit_table import print_hits, print_paths
    from retrieval_engine.cli.output import note
    from retrieval_engine.durable import replace_file
    from retrieval_engine.errors import UsageError
    from retrieval_engine.search import open_engine
    from retrieval_engine.search.contact_sheet import render

    asked_with = sum((bool(queries), image is not None, vectors is not None))
    if asked_with != 1:
        raise UsageError(
            "give only one of words, --image and --vectors"
            if asked_with
            else "nothing to search for",
            hint='ask with words, `vlre search "a dog on grass"`, or with --image PATH',
        )
    if captions and image is None:
        raise UsageError("--captions answers a picture: it needs --image")
    if rerank and not queries:
        raise UsageError("--rerank matches words with pictures: it goes with a query in words")
    asked = index if ctx.get_parameter_source("index") is not ParameterSource.DEFAULT else None
    engine = open_engine(
        store, asked, default_index=index, head=head, split=split, device=device, model=model
    )
    for line in engine.notes:
        note(line)
    if image is not None:
        sections = [_ask_with_picture(engine, image, k, captions)]
    elif vectors is not None:
        sections = _ask_with_vectors(engine, vectors, k)
    else:
        sections = _ask_with_words(engine, queries, k, rerank or 0, rerank_model)
    if paths or null:
        print_paths(sections, end="\0" if null else "\n")
    elif not quiet:
        print_hits(sections, as_json=as_json, with_query=len(sections) > 1 or queries == ("-",))
    if html:
        replace_file(html, render(sections).encode())
        note(f"contact sheet: {html}")


def _ask_with_words(
    engine: "SearchEngine", queries: tuple[str, ...], k: int, rerank: int, rerank_model: str
) -> "list[Section]":
    from retrieval_engine.errors import UsageError
    from retrieval_engine.search.contact_sheet import Section

    texts = list(queries)
    if queries == ("-",):
        texts = _lines_of_stdin()
        if not texts:
            raise UsageError("no query on stdin", hint="one query a line")
    answers = engine.search_texts(texts, k, rerank=rerank, rerank_model=rerank_model)
    return [Section(title=t, hits=hits) for t, hits in zip(texts, answers, strict=True)]


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
    return [text for text in texts if text]


def _ask_with_vectors(engine: "SearchEngine", path: Path, k: int) -> "list[Section]":
    from retrieval_engine.search import read_vectors, search_vectors
    from retrieval_engine.search.contact_sheet import Section

    answers = search_vectors(engine, read_vectors(path), k)
    return [Section(title=f"{path.name} {row}", hits=hits) for row, hits in enumerate(answers)]


def _ask_with_picture(engine: "SearchEngine", uri: str, k: int, captions: bool) -> "Section":
    from retrieval_engine.search.contact_sheet import Section
    from retrieval_engine.sources.asked import read_asked

    data = read_asked(uri)
    return Section(title=uri, hits=engine.search_image(data, k, captions), image=data)
