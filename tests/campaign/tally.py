"""What was tried, what held, what fell."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Row:
    """One kind of trial."""

    name: str
    tried: int = 0
    held: int = 0
    seconds: float = 0.0
    fell: list[str] = field(default_factory=list)


class Tally:
    """Rows in the order in which they were begun, and what the trials came to."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    @contextmanager
    def trial(self, name: str, what: str) -> Iterator[None]:
        """One trial: it held when the block ends, and fell when an assertion in it fails.

        Args:
            name: of the row.
            what: enough to do it again.
        """
        row = self.rows.setdefault(name, Row(name))
        row.tried += 1
        begin = time.monotonic()
        try:
            yield
            row.held += 1
        except AssertionError as error:
            row.fell.append(f"{what}: {str(error).strip()[:600]}")
            sys.stderr.write(f"fell: {name}: {row.fell[-1]}\n")
        finally:
            row.seconds += time.monotonic() - begin
            if row.tried % 10 == 0:
                sys.stderr.write(f"{name}: {row.held:,} of {row.tried:,} held\n")

    @property
    def fell(self) -> list[str]:
        """One text for each trial that fell."""
        return [f"{row.name}: {text}" for row in self.rows.values() for text in row.fell]

    def markdown(self) -> str:
        """The table."""
        lines = ["| trial | tried | held | fell | s |", "| --- | ---: | ---: | ---: | ---: |"]
        lines += [
            f"| {row.name} | {row.tried:,} | {row.held:,} | {len(row.fell)} | {row.seconds:.0f} |"
            for row in self.rows.values()
        ]
        return "\n".join(lines)
