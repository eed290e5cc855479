"""What all tables of figures share."""

from typing import TYPE_CHECKING

from retrieval_engine.cli.output import table_console

if TYPE_CHECKING:
    from rich.table import Table

    from retrieval_engine.metrics.bootstrap import Interval

_PIPED_WIDTH = 180


def interval_range(interval: "Interval | None", scale: float) -> str:
    """An interval beside its figure, dim; nothing where there is none."""
    if interval is None:
        return ""
    low, high = (scale * bound for bound in interval)
    return f" [dim]({low:.1f}-{high:.1f})[/]"


def print_wide(table: "Table") -> None:
    """Print a table of many columns; in a file or a pipe it may be as wide as it needs."""
    console = table_console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    console.print(table)
