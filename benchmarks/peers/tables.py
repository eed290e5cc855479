"""JSON lines of comparisons as Markdown tables."""

import json
from collections.abc import Iterable

from benchmarks.peers.turns import Figures

LEFT_OUT = {
    "benchmark",
    "comparison",
    "case",
    "side",
    "package",
    "version",
    "note",
    "commit",
    "cpu",
    "cores",
    "python",
    "versions",
    "threads",
    "rounds",
    "load",
    "failed",
}


def markdown(lines: str) -> str:
    """A table for each comparison and size; of lines with the same side the last one counts."""
    groups: dict[tuple[str, str], dict[str, Figures]] = {}
    for text in filter(str.strip, lines.splitlines()):
        line = json.loads(text)
        groups.setdefault((line["comparison"], line["case"]), {})[line["side"]] = line
    return "\n\n".join(_table(*key, list(rows.values())) for key, rows in groups.items())


def _table(name: str, case: str, rows: list[Figures]) -> str:
    """One table: figures that any side has are columns."""
    columns = list(dict.fromkeys(c for row in rows for c in row if c not in LEFT_OUT))
    head = ["side", *columns]
    text = [f"{name}, {case} (load {rows[0]['load']}, {rows[0]['rounds']} rounds)", ""]
    text += [_row(head), _row("---" for _ in head)]
    for row in rows:
        side = f"{row['side']} {row['version']}" if row.get("version") else row["side"]
        cells = (
            [f"failed: {row['failed']}"] if "failed" in row else [_cell(row, c) for c in columns]
        )
        text.append(_row([side, *cells]))
    return "\n".join(text)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(row: Figures, column: str) -> str:
    value = row.get(column, "–")
    return f"{value:,}" if isinstance(value, int | float) and abs(value) >= 1000 else str(value)
