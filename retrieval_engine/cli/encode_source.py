"""`vlre encode SOURCE`: pictures and captions of a source into a store."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_engine.cli.encode_summary import tell
from retrieval_engine.cli.output import progress_bar

if TYPE_CHECKING:
    from retrieval_engine.encoding import EncodeOptions, EncodeReport


def encode_source(source: str, store: Path, given: dict[str, Any]) -> "EncodeReport":
    """Encode a source, and print the report.

    Args:
        source: its name, as `open_source` takes it.
        store: directory of the store.
        given: the other options of the command.
    """
    from retrieval_engine.encoding import encode
    from retrieval_engine.models import open_encoder
    from retrieval_engine.models.captioner import open_tower
    from retrieval_engine.sources import open_source

    options = _options(given)
    if given["allow_missing"]:
        source = f"{source}{'&' if '?' in source else '?'}allow_missing=true"
    opened = open_source(source)
    # For `tokens` alone the tower of a captioning checkpoint will do.
    opener = open_tower if options.features == ("tokens",) else open_encoder
    model, adapter = given["model"], given["adapter"]
    encoder = opener(model, device=given["device"], dtype=given["dtype"], adapter=adapter)
    with progress_bar() as progress:
        report = encode(opened, store, encoder=encoder, options=options, progress=progress)
    tell(report, notes=opened.notes, as_json=given["as_json"])
    return report


def _options(given: dict[str, Any]) -> "EncodeOptions":
    from retrieval_engine.encoding import EncodeOptions

    return EncodeOptions(
        features=tuple(name.strip() for name in given["features"].split(",") if name.strip()),
        store_dtype=given["store_dtype"],
        split=given["split"] or "",
        limit=given["limit"] or 0,
        batch_size=given["batch_size"] or 0,
        workers=given["workers"] or 0,
        worker_kind=given["worker_kind"],
        part_rows=given["shard_rows"],
        overwrite=given["overwrite"],
    )
