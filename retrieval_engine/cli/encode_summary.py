"""The report of an encode run for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval_engine.records import Json


def encode_summary(report: "Mapping[str, Json]") -> str:
    """The report of an encode run for people, three lines or four."""
    lines = []
    for modality in ("images", "captions"):
        tally = report[modality]
        if isinstance(tally, dict):
            counts = ", ".join(
                f"{n:,} {what}" for what, n in tally.items() if n or what == "encoded"
            )
            lines.append(f"{modality:9} {counts}")
    gone = [
        f"{report[what]:,} {words}"
        for what, words in (("removed", "no longer there"), ("moved", "moved here"))
        if report.get(what)
    ]
    if gone:
        lines.append(f"items     {', '.join(gone)}")
    lines.append(
        f"store     {report['store']} in {report['seconds']} s, {report['images_per_s']} images/s"
    )
    return "\n".join(lines)
