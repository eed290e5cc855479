"""How commands talk: results on stdout, everything else on stderr."""

import codecs
import io
import json
import logging
import math
import os
import re
import sys
import time
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
_FIRST_LINE_S, _NEXT_LINES_S = 10, 30
# What moves the cursor, changes colours or the order of letters: a terminal obeys, whoever wrote it.
_CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def shown(text: str, *, keep: str = "") -> str:
    r"""A text with its control characters as `\x1b` and `\u202e`, for a terminal.

    Args:
        text: a name or a message with names in it.
        keep: control characters that stay.
    """

    def escaped(found: re.Match[str]) -> str:
        code = ord(found[0])
        if found[0] in keep:
            return found[0]
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

    return _CONTROLS.sub(escaped, text)


def write_any_name() -> None:
    """Make stdout take every name: bytes that are no UTF-8 as they were, in UTF-8; else escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        unicode = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")


def on_terminal() -> bool:
    """Whether stdout is a terminal; a closed one is none."""
    return sys.stdout is not None and sys.stdout.isatty()


def emit(value: Mapping[str, Any]) -> None:
    """Print one JSON object as one line on stdout."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if on_terminal():  # inside JSON's strings, where alone they can be, these are escapes too
        line = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
    click.echo(line)


def tell(lines: str) -> None:
    """Print a result for people on stdout: as it is when piped, escaped on a terminal."""
    # Without `color` click would drop from a pipe what looks like colours.
    click.echo(shown(lines, keep="\n\t") if on_terminal() else lines, color=True)


def note(line: str, context: click.Context | None = None) -> None:
    """One line for people, on stderr; arguments that it names are worded as options.

    Args:
        line: as the library says it.
        context: of the command whose options are meant; None means the one that runs.
    """
    from retrieval_engine.cli.wording import as_options

    context = context or click.get_current_context(silent=True)
    worded = as_options(line, context) if context else line
    click.echo(shown(worded, keep="\n\t"), err=True)


def note_failures(failures: "Sequence[Failure]", ledger: str = "") -> None:
    """Say which items failed: the first few, and how many more.

    Args:
        failures: one for each item.
        ledger: file that lists them all, where there is one.
    """
    for failure in failures[:_SHOWN_FAILURES]:
        note(f"failed: {shown(failure.item_id)}: {shown(failure.reason)}")
    if len(failures) > _SHOWN_FAILURES:
        where = f"; see {ledger}" if ledger else ""
        note(f"failed: {len(failures) - _SHOWN_FAILURES} more{where}")


def table_console() -> "Console":
    """A console for result tables on stdout; without colour when piped."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=not on_terminal())


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


def quiet_libraries(*, debug: bool, transfers: bool = False) -> None:
    """Keep the libraries' own talk from people unless they ask for it.

    Args:
        debug: all of it is wanted.
        transfers: the hub's client shows how far it has come.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve busy machines
    if debug:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not transfers:
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
        self._detail = ""
        self._lines = _Lines()

    def start(self, what: str, total: int | None) -> None:
        self.stop()
        if self._console.is_terminal:
            self._task = self._bar.add_task(shown(what), total=total, rate="")
        else:
            self._lines.start(what, total)

    def advance(self, steps: int = 1) -> None:
        if self._task is None:
            self._lines.advance(steps)
            return
        self._bar.advance(self._task, steps)
        speed = next(t.speed for t in self._bar.tasks if t.id == self._task)
        if speed:
            self._bar.update(self._task, rate=f"{speed:,.1f}/s{self._detail}")

    def detail(self, text: str) -> None:
        self._detail = self._lines.detail = f" ({text})" if text else ""

    def say(self, line: str) -> None:
        if self._console.is_terminal:
            self._bar.console.print(shown(line, keep="\n\t"), markup=False)
        else:
            note(line)

    def stop(self) -> None:
        self.detail("")
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self._lines.stop()


class _Lines:
    """Says in a log what a bar shows on a terminal: at the start, after 10 s, then every 30 s."""

    detail = ""

    def __init__(self) -> None:
        self._due = math.inf

    def start(self, what: str, total: int | None) -> None:
        note(f"{what} …" if total is None else f"{what}: {total:,} …")
        self._what, self._total, self._done = what, total, 0
        self._begin = time.monotonic()
        self._due = self._begin + _FIRST_LINE_S

    def advance(self, steps: int) -> None:
        now = time.monotonic()
        if self._due == math.inf:
            return
        self._done += steps
        if now >= self._due:
            of = "" if self._total is None else f" of {self._total:,}"
            rate = self._done / (now - self._begin)
            note(f"{self._what}: {self._done:,}{of}, {rate:,.1f}/s{self.detail}")
            self._due = now + _NEXT_LINES_S

    def stop(self) -> None:
        self._due = math.inf
