"""How an encode run looks: the report on stdout, remarks and failures on stderr."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from retrieval_engine.cli.output import emit, note, note_failures

if TYPE_CHECKING:
    from retrieval_engine.encoding.from_source import EncodeReport
    from retrieval_engine.encoding.projected import ProjectionReport
    from retrieval_engine.records import Json


def show_encoded(report: "EncodeReport", *, notes: Sequence[str], as_json: bool) -> None:
    """Print a report, and what the source remarked and what failed.

    Args:
        report: of the run.
        notes: what the source remarked.
        as_json: one JSON line instead of three for people.
    """
    for line in notes:
        note(line)
    note_failures(report.failures, f"{report.store}/failures.jsonl")
    if as_json:
        emit(report.to_json())
    else:
        click.echo(_summary(report.to_json()))


def show_projected(report: "ProjectionReport", *, as_json: bool) -> None:
    """Print what a head made of a store's features."""
    if as_json:
        emit(report.to_json())
    else:
        click.echo(
            f"{report.feature}: {report.images:,} images and {report.captions:,} captions of "
            f"{report.store} in {report.seconds:.1f} s"
        )


def _summary(report: "Mapping[str, Json]") -> str:
    """Three lines for people."""
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
