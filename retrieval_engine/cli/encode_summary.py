"""What an encode run has to say when it ends."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.output import emit, note, note_failures

if TYPE_CHECKING:
    from retrieval_engine.encoding import EncodeReport
    from retrieval_engine.records import Json


def tell(report: "EncodeReport", *, notes: Sequence[str] = (), as_json: bool) -> None:
    """The report on stdout; what the source remarked and what failed on stderr."""
    for line in notes:
        note(line)
    note_failures(report.failures, f"{report.store}/failures.jsonl")
    if as_json:
        emit(report.to_json())
    else:
        click.echo(encode_summary(report.to_json()))


def encode_summary(report: "Mapping[str, Json]") -> str:
    """The report of an encode run for people, three lines."""
    lines = []
    for modality in ("images", "captions"):
        tally = report[modality]
        if isinstance(tally, dict):
            counts = ", ".join(
                f"{n:,} {what}" for what, n in tally.items() if n or what == "encoded"
            )
            lines.append(f"{modality:9} {counts}")
    lines.append(
        f"store     {report['store']} in {report['seconds']} s, {report['images_per_s']} images/s"
    )
    return "\n".join(lines)
