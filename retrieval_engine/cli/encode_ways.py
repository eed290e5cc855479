"""The ways of `vlre encode`: a source or what it would take, stale features again, what a head makes."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from retrieval_engine.cli.output import emit, note, note_failures, progress_bar

if TYPE_CHECKING:
    from retrieval_engine.encoding import EncodeOptions, EncodeReport
    from retrieval_engine.encoding.device_pool import DevicePool
    from retrieval_engine.models import Encoder
    from retrieval_engine.models.text_tower import EncoderToCome
    from retrieval_engine.progress import Progress
    from retrieval_engine.records import Json
    from retrieval_engine.sources import Source


def encode_source(source: str, store: Path, given: dict[str, Any]) -> "EncodeReport":
    """Encode a source, and print the report.

    Args:
        source: its name, as `open_source` takes it.
        store: directory of the store.
        given: the other options of the command.
    """
    from retrieval_engine.engine import Engine

    opened, options = _source(source, store, given), _options(given)
    with (
        progress_bar() as progress,
        _model(options.features, given, progress, store) as model,
        Engine(store=store, model=cast("Encoder", model)) as engine,  # a pool can add, if no more
    ):
        report = engine.add(opened, options=options, progress=progress)
    _tell(report, notes=opened.notes, as_json=given["as_json"])
    return report


def estimate_source(source: str, store: Path, given: dict[str, Any]) -> None:
    """Print what encoding a source would take; takes what `encode_source` takes."""
    from retrieval_engine.encoding import estimate

    opened, options = _source(source, store, given), _options(given)
    with progress_bar() as progress, _model(options.features, given, progress) as model:
        found = estimate(opened, model, options=options, progress=progress)
    if given["as_json"]:
        emit(found.to_json())
        return
    known, items = found.items is not None, 1_000 if found.items is None else found.items
    click.echo(
        f"items     {f'{items:,}' if known else 'their number is not known; of each 1,000'}\n"
        f"time      {items * found.seconds_per_item:,.0f} s, {1 / found.seconds_per_item:,.1f} "
        f"images/s\n"
        f"disk      {items * found.bytes_per_item / 1e6:,.1f} MB\n"
        f"seen      {found.sampled} items, {found.failed} of them failed; {store} is untouched"
    )


def _source(source: str, store: Path, given: dict[str, Any]) -> "Source":
    from retrieval_engine.encoding import open_changed

    if given["allow_missing"]:
        source = f"{source}{'&' if '?' in source else '?'}allow_missing=true"
    return open_changed(source, store)


def _model(
    features: tuple[str, ...],
    given: dict[str, Any],
    progress: "Progress",
    store: Path | None = None,
) -> "AbstractContextManager[Encoder | DevicePool]":
    """The model in this process, or one on each of the devices.

    It is not built before it is asked, where a store tells all of it that a run must know.
    """
    from functools import partial

    from retrieval_engine.encoding import followed_dtype, open_devices
    from retrieval_engine.models import open_encoder
    from retrieval_engine.models.captioner import open_tower

    # For `tokens` alone the tower of a captioning checkpoint will do.
    opener = open_tower if features == ("tokens",) else open_encoder
    if store is not None:
        dtype = followed_dtype(store, given["dtype"], overwrite=given["overwrite"])
        given = {**given, "dtype": dtype}
    open_model = partial(
        opener,
        given["model"],
        dtype=given["dtype"],
        adapter=given["adapter"],
        fast_decode=given["fast_decode"],
    )
    if given["devices"] or given["on"]:
        return open_devices(given["devices"], open_model, on=given["on"], progress=progress)
    known = None
    if store is not None and opener is open_encoder and not given["adapter"]:
        known = _known(store, given)
    if known is not None:
        return nullcontext(cast("Encoder", known))
    return nullcontext(open_model(device=given["device"]))


def _known(store: Path, given: dict[str, Any]) -> "EncoderToCome | None":
    """The store's encoder where it is the one asked for; a second run may need no model at all."""
    from retrieval_engine.errors import EncoderError, StoreError
    from retrieval_engine.models.text_tower import open_when_needed
    from retrieval_engine.store import open_store

    try:
        spec, model = open_store(store).spec, given["model"]
        return open_when_needed(
            spec,
            checkpoint=model,
            device=given["device"],
            dtype=given["dtype"],
            fast_decode=given["fast_decode"],
        )
    except (StoreError, EncoderError):
        return None  # who opens the model, or the store to write, says what is wrong


def renew(store: Path, given: dict[str, Any]) -> "EncodeReport":
    """Make a store a model's own, and print the report.

    Args:
        store: directory of the store.
        given: model, adapter, device, dtype, fast_decode, batch_size, workers and as_json.
    """
    from retrieval_engine.encoding import encode_stale, followed_dtype
    from retrieval_engine.models.captioner import open_tower

    model, adapter = given["model"], given["adapter"]
    # A captioning checkpoint will do too: its vision tower may be all that is stale.
    encoder = open_tower(
        model,
        device=given["device"],
        dtype=followed_dtype(store, given["dtype"]),
        adapter=adapter,
        fast_decode=given["fast_decode"],
    )
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
    """The report of an encode run for people, a few lines and one for each device."""
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
    steps = ("read", "decode", "transfer", "model", "write")
    spent = [f"{step} {t} s" for step in steps if (t := report.get(f"{step}_seconds"))]
    if spent:
        lines.append(f"spent     {', '.join(spent)}")
    devices = report.get("devices")
    if isinstance(devices, list):
        lines += [_of_device(tally) for tally in devices if isinstance(tally, dict)]
    return "\n".join(lines)


def _of_device(tally: "Mapping[str, Json]") -> str:
    again = f", begun again {tally['restarts']} times" if tally["restarts"] else ""
    return (
        f"{tally['device']:9} {tally['images']:,} images, {tally['captions']:,} captions, "
        f"{tally['images_per_s']} images/s, model {tally['model_seconds']} s, "
        f"transfer {tally['transfer_seconds']} s{again}"
    )
