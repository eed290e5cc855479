"""Tables as text, for people who paste them."""

from collections.abc import Iterable, Sequence


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a README or an issue: names on the left, figures on the right."""
    lines = ["| " + " | ".join(headings) + " |"]
    lines.append("| --- |" + " ---: |" * (len(headings) - 1))
    for name, *figures in rows:
        lines.append("| " + " | ".join([name.replace("|", "\\|"), *figures]) + " |")
    return "\n".join(lines)
