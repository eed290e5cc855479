"""`vlre serve`: a web page and an HTTP API over a store."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from retrieval_engine.cli.completion import models
from retrieval_engine.cli.options import (
    device_option,
    example,
    head_option,
    moved_model_option,
    split_option,
    store_option,
)


@click.command(epilog=example("vlre serve --store embeddings"))
@store_option
@click.option("--index", envvar="VLRE_INDEX", help="Directory of the index. [env: VLRE_INDEX]")
@head_option
@split_option
@moved_model_option
@click.option(
    "--caption-model",
    "caption_models",
    multiple=True,
    shell_complete=models,
    help="Writes captions; give several to choose from and compare. Default: the store's model.",
)
@device_option
@click.option(
    "--devices",
    help="A process for each, behind one port: all; cuda:0,cuda:1; cpu:2 for two on the CPU.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Others need --token.")
@click.option("--port", default=8000, show_default=True, help="0 takes any that is free.")
@click.option(
    "--token",
    default="",
    envvar="VLRE_TOKEN",
    help="What requests must carry as Authorization: Bearer TOKEN. [env: VLRE_TOKEN]",
)
@click.option("--allowed-hosts", multiple=True, help="Another name that it is reached by.")
@click.option("--rate", type=float, help="Requests a second from one address; 0 is no limit.")
@click.option("--max-body-bytes", default=32 << 20, show_default=True, help="Of one request.")
@click.option("--max-pixels", default=50_000_000, show_default=True, help="Of one image.")
@click.option(
    "--max-waiting",
    default=128,
    show_default=True,
    help="Questions that wait for a model; more are refused with 429.",
)
@click.option(
    "--cache",
    default="",
    envvar="VLRE_CACHE",
    help="Folder for small images; default: the user's. [env: VLRE_CACHE]",
)
@click.option(
    "--cache-bytes", default=1 << 30, show_default=True, help="Of small images; 0 keeps none."
)
@click.option("--allow-adding", is_flag=True, help="Let images be added: POST /api/items.")
@click.option(
    "--mcp",
    type=click.Choice(["stdio", "http"]),
    is_flag=False,
    flag_value="stdio",
    help="Tools for assistants: over stdin and stdout instead of a page, or at /mcp beside it.",
)
def command(
    store: Path,
    index: str | None,
    head: Path | None,
    split: str | None,
    model: str,
    device: str,
    devices: str | None,
    mcp: str | None,
    **limits: Any,
) -> None:
    """Serve a page to search and caption with, and the API behind it, until Ctrl-C.

    The page is at http://127.0.0.1:8000, the API's description at /docs. What `vlre encode` adds
    is found within a second. The log on stderr is one JSON object a line.
    """
    from retrieval_engine import Engine
    from retrieval_engine.errors import MissingExtra, UsageError
    from retrieval_engine.machine import devices_of

    try:
        from retrieval_engine.serve import ServeSettings, run_processes, run_server
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "serve") from error
    settings = ServeSettings(**limits, mcp=mcp == "http")
    named = devices_of(devices) if devices else []
    if named and (mcp == "stdio" or device != "auto"):
        raise UsageError("`devices` goes neither with `device` nor with `mcp='stdio'`")
    opened = partial(Engine, store=store, index=index, head=head, split=split, model=model)
    engine = opened(device=device)
    engine.searcher()  # what is wrong with the store or the index is said now, and ends it
    if settings.caption_models:
        from retrieval_engine.models.captioner import check_captioner

        for name in settings.caption_models:
            check_captioner(name)
    if named:
        engine.close()
        run_processes(opened, settings, named)
        return
    if mcp != "stdio":
        run_server(engine, settings)
        return
    try:
        from retrieval_engine.serve import run_assistant
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "mcp") from error
    run_assistant(engine, settings)
