"""How commands talk: results on stdout, everything else on stderr."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.table import Table

    from retrieval_engine.metrics.bootstrap import Interval
    from retrieval_engine.progress import Progress
    from retrieval_engine.records import Failure

SOME_FAILED = 3
"""Exit code of a run that is done but for some items."""
_SHOWN_FAILURES = 5
_PIPED_WIDTH = 180


def emit(value: Mapping[str, Any]) -> None:
    """Print one JSON object as one line on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def note(line: str) -> None:
    """One line for people, on stderr; arguments that it names are worded as options."""
    from retrieval_engine.cli.wording import as_options

    context = click.get_current_context(silent=True)
    click.echo(as_options(line, context) if context else line, err=True)


def note_failures(failures: "Sequence[Failure]", ledger: str = "") -> None:
    """Say which items failed: the first few, and how many more.

    Args:
        failures: one for each item.
        ledger: file that lists them all, where there is one.
    """
    for failure in failures[:_SHOWN_FAILURES]:
        note(f"failed: {failure.item_id}: {failure.reason}")
    if len(failures) > _SHOWN_FAILURES:
        where = f"; see {ledger}" if ledger else ""
        note(f"failed: {len(failures) - _SHOWN_FAILURES} more{where}")


def table_console() -> "Console":
    """A console for result tables on stdout; without colour when piped."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def print_wide(table: "Table") -> None:
    """Print a table of many columns; in a file or a pipe it may be as wide as it needs."""
    console = table_console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    console.print(table)


def interval_range(interval: "Interval | None", scale: float) -> str:
    """An interval beside its figure, dim; nothing where there is none."""
    if interval is None:
        return ""
    low, high = (scale * bound for bound in interval)
    return f" [dim]({low:.1f}-{high:.1f})[/]"


def quiet_libraries(*, debug: bool) -> None:
    """Keep the libraries' own talk from people unless they ask for it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve busy machines
    if debug:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")


@contextmanager
def progress_bar() -> "Iterator[Progress]":
    """A listener that draws bars with rates and time left on stderr.

    Where stderr is no terminal it prints a line now and then instead.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    listener = _BarProgress(bar, console)
    with bar:
        yield listener


class _BarProgress:
    """Turns progress reports into a rich bar, or into sparse lines when not on a terminal."""

    def __init__(self, bar: "Bar", console: "Console") -> None:
        self._bar = bar
        self._console = console
        self._task: Any = None

    def start(self, what: str, total: int | None) -> None:
        self.stop()
        if self._console.is_terminal:
            self._task = self._bar.add_task(what, total=total, rate="")
        else:
            note(f"{what} …" if total is None else f"{what}: {total:,} …")

    def advance(self, steps: int = 1) -> None:
        if self._task is None:
            return
        self._bar.advance(self._task, steps)
        speed = next(t.speed for t in self._bar.tasks if t.id == self._task)
        if speed:
            self._bar.update(self._task, rate=f"{speed:,.1f}/s")

    def say(self, line: str) -> None:
        if self._console.is_terminal:
            self._bar.console.print(line)
        else:
            note(line)

    def stop(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
