"""The three ways of `vlre encode`: a source, stale features again, what a head makes of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval_engine.cli.output import emit, note, note_failures, progress_bar

if TYPE_CHECKING:
    from retrieval_engine.encoding import EncodeOptions, EncodeReport
    from retrieval_engine.records import Json


def encode_source(source: str, store: Path, given: dict[str, Any]) -> "EncodeReport":
    """Encode a source, and print the report.

    Args:
        source: its name, as `open_source` takes it.
        store: directory of the store.
        given: the other options of the command.
    """
    from retrieval_engine.encoding import open_changed
    from retrieval_engine.engine import Engine
    from retrieval_engine.models import open_encoder
    from retrieval_engine.models.captioner import open_tower

    options = _options(given)
    if given["allow_missing"]:
        source = f"{source}{'&' if '?' in source else '?'}allow_missing=true"
    opened = open_changed(source, store)
    # For `tokens` alone the tower of a captioning checkpoint will do.
    opener = open_tower if options.features == ("tokens",) else open_encoder
    model, adapter = given["model"], given["adapter"]
    encoder = opener(model, device=given["device"], dtype=given["dtype"], adapter=adapter)
    with progress_bar() as progress, Engine(store=store, model=encoder) as engine:
        report = engine.add(opened, options=options, progress=progress)
    _tell(report, notes=opened.notes, as_json=given["as_json"])
    return report


def renew(store: Path, given: dict[str, Any]) -> "EncodeReport":
    """Make a store a model's own, and print the report.

    Args:
        store: directory of the store.
        given: model, adapter, device, dtype, batch_size, workers and as_json of the command.
    """
    from retrieval_engine.encoding import encode_stale
    from retrieval_engine.models.captioner import open_tower

    model, adapter = given["model"], given["adapter"]
    # A captioning checkpoint will do too: its vision tower may be all that is stale.
    encoder = open_tower(model, device=given["device"], dtype=given["dtype"], adapter=adapter)
    batch_size, workers = given["batch_size"] or 0, given["workers"] or 0
    with progress_bar() as progress:
        report = encode_stale(
            store, encoder, batch_size=batch_size, workers=workers, progress=progress
        )
    _tell(report, as_json=given["as_json"])
    return report


def project(store: Path, head: Path, *, as_json: bool) -> None:
    """Write what a head makes of a store's features beside them, and say how much that was."""
    from retrieval_engine.encoding.projected import project_store
    from retrieval_engine.heads import load_head

    with progress_bar() as progress:
        report = project_store(store, load_head(head), progress=progress)
    if as_json:
        emit(report.to_json())
    else:
        click.echo(
            f"{report.feature}: {report.images:,} images and {report.captions:,} captions of "
            f"{report.store} in {report.seconds:.1f} s"
        )


def _options(given: dict[str, Any]) -> "EncodeOptions":
    from retrieval_engine.encoding import EncodeOptions

    return EncodeOptions(
        features=tuple(name.strip() for name in given["features"].split(",") if name.strip()),
        store_dtype=given["store_dtype"],
        split=given["split"] or "",
        limit=given["limit"] or 0,
        shard=given["shard"],
        batch_size=given["batch_size"] or 0,
        workers=given["workers"] or 0,
        worker_kind=given["worker_kind"],
        part_rows=given["shard_rows"],
        overwrite=given["overwrite"],
    )


def _tell(report: "EncodeReport", *, notes: Sequence[str] = (), as_json: bool) -> None:
    """The report on stdout; what the source remarked and what failed on stderr."""
    for line in notes:
        note(line)
    note_failures(report.failures, f"{report.store}/failures.jsonl")
    if as_json:
        emit(report.to_json())
    else:
        click.echo(_summary(report.to_json()))


def _summary(report: "Mapping[str, Json]") -> str:
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
