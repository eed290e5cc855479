"""`vlre watch`: a folder and its store, kept alike."""

import os
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.options import (
    UserPath,
    any_model_option,
    device_option,
    example,
    json_option,
    store_option,
)

if TYPE_CHECKING:
    from retrieval_engine import Engine
    from retrieval_engine.records import Failure

_LOOKS_MS = 500  # how often Ctrl-C is looked for
_STALE = 0.01  # share of an index that may be out of date


@click.command(epilog=example("vlre watch ~/Pictures"))
@click.argument("folder", type=UserPath())
@store_option
@click.option("--index", type=UserPath(), help="Kept up to date; default: the store's, if any.")
@any_model_option
@device_option
@json_option
def command(
    folder: Path, store: Path, index: Path | None, model: str, device: str, as_json: bool
) -> None:
    """Encode the pictures of FOLDER, and whatever is added, changed or taken out, until Ctrl-C.

    Searches and `vlre serve` see each change as it is done. What is being copied in is encoded when
    it is whole. An index of the store is brought up to date once a hundredth of it is not.
    """
    from retrieval_engine import Engine
    from retrieval_engine.cli.output import emit, note, note_failures, progress_bar
    from retrieval_engine.errors import SourceError, UsageError

    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder")
    told: frozenset[Failure] = frozenset()
    with Engine(store=store, index=index, model=model, device=device) as engine:
        for first in _changes(folder, engine):
            try:
                with progress_bar() if first else nullcontext() as progress:
                    report = engine.add(folder, progress=progress)
            except SourceError as error:  # nothing in it yet, or what is there cannot be read
                note(f"{error}; waiting for more")
                continue
            new = [failure for failure in report.failures if failure not in told]
            note_failures(new, f"{report.store}/failures.jsonl")
            told = frozenset(report.failures)
            if as_json:
                emit(report.to_json())
            else:
                click.echo(
                    f"{len(engine):,} pictures in {report.store}: {report.images.encoded:,} "
                    f"encoded, {report.removed:,} no longer there, {len(report.failures):,} failed"
                )
            _update(engine)


def _changes(folder: Path, engine: "Engine") -> Iterator[bool]:
    """Once at the beginning, which is True, then whenever something in a folder has changed."""
    from retrieval_engine.errors import MissingExtra, SourceError

    try:
        import watchfiles
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "watch") from error

    own = [os.path.realpath(place) for place in (engine.store_path, engine.index_path)]

    def is_theirs(_: watchfiles.Change, path: str) -> bool:
        return not any(path == place or path.startswith(place + os.sep) for place in own)

    seen = False
    try:
        with closing(
            watchfiles.watch(
                os.path.realpath(folder),
                watch_filter=is_theirs,
                rust_timeout=_LOOKS_MS,
                yield_on_timeout=True,
            )
        ) as rounds:
            for changes in rounds:  # the first, empty or not, comes when it is being watched
                if changes or not seen:
                    yield not seen
                    seen = True
    except (OSError, RuntimeError) as error:  # the system's limit of watches; the folder is gone
        raise SourceError(
            f"{folder} cannot be watched: {error}",
            hint="WATCHFILES_FORCE_POLLING=true looks at it instead of being told",
        ) from error


def _update(engine: "Engine") -> None:
    from retrieval_engine.cli.output import note
    from retrieval_engine.errors import IndexFailure
    from retrieval_engine.index.fresh import FreshIndex

    index = engine.searcher().index
    if isinstance(index, FreshIndex) and index.newer + index.gone > _STALE * index.items:
        try:
            change = engine.update_index()
        except IndexFailure as error:  # its recipe takes no updates
            note(str(error))
        else:
            note(f"{change.index}: {change.added:,} items added, {change.removed:,} removed")
