"""`vlre up`: a folder, searchable in the browser while it is being encoded."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.options import (
    UserPath,
    any_model_option,
    device_option,
    example,
    store_option,
)

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from retrieval_engine import Engine

_LOOKS_S = 0.2


@click.command(epilog=example("vlre up ~/Pictures"))
@click.argument("folder", type=UserPath())
@store_option
@any_model_option
@device_option
@click.option("--port", default=8000, show_default=True, help="0 takes any that is free.")
@click.pass_context
def command(
    ctx: click.Context, folder: Path, store: Path, model: str, device: str, port: int
) -> None:
    """Encode FOLDER and serve a page to search it with, which shows each part as it is done.

    It is `vlre watch` and `vlre serve` at once: what comes into the folder or goes from it later is
    followed too, until Ctrl-C. The page opens with the first pictures that are done.
    """
    from retrieval_engine import Engine
    from retrieval_engine.cli.output import note
    from retrieval_engine.errors import MissingExtra, UsageError

    try:
        from retrieval_engine.serve import ServeSettings, run_server
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "serve") from error
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder")
    settings = ServeSettings(port=port)
    words = ["watch", str(folder), "--store", str(store), "--model", model, "--device", device]
    watcher = multiprocessing.get_context("spawn").Process(target=_watch, args=(words,))
    watcher.start()
    try:
        engine = Engine(store=store, model=model, device=device)
        if _has_pictures(engine, watcher):
            note(f"http://127.0.0.1:{port}" if port else "serving")
            run_server(engine, settings)
        else:
            ctx.exit(watcher.exitcode or 1)
    finally:
        watcher.terminate()
        watcher.join()


def _has_pictures(engine: "Engine", watcher: "SpawnProcess") -> bool:
    """Wait until the store has pictures; False when the watcher has ended without."""
    while not len(engine):
        if not watcher.is_alive():
            return False
        time.sleep(_LOOKS_S)
    return True


def _watch(words: Sequence[str]) -> None:
    """`vlre watch` in a process of its own, which ends with the one that began it."""
    from retrieval_engine.cli import main

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server has its graceful end first
    threading.Thread(target=_end_with_parent, daemon=True).start()
    main(list(words))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
