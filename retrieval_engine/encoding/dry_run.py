"""What encoding a source would take, from some of its items encoded for real."""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from retrieval_engine.encoding.device_pool import DevicePool
from retrieval_engine.encoding.encode_report import EncodeOptions
from retrieval_engine.encoding.from_source import encode, items_expected
from retrieval_engine.errors import SourceError
from retrieval_engine.models import Encoder
from retrieval_engine.models.lanes import lanes_of
from retrieval_engine.progress import Progress
from retrieval_engine.records import Json
from retrieval_engine.sources import Source

SAMPLE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run over a source would take, beside opening the model.

    Attributes:
        items: that it would look at, or None where only reading all of them would tell.
        sampled: items encoded to find out.
        failed: of them, items that could not be encoded.
        seconds_per_item: wall time.
        bytes_per_item: of the store.
    """

    items: int | None
    sampled: int
    failed: int
    seconds_per_item: float
    bytes_per_item: float

    def to_json(self) -> dict[str, Json]:
        """The estimate as one JSON object, with the whole run's `seconds` and `bytes`."""
        value: dict[str, Json] = asdict(self)
        known = self.items is not None
        seconds, size = self.seconds_per_item, self.bytes_per_item
        return value | {
            "seconds": round(seconds * (self.items or 0), 3) if known else None,
            "bytes": int(size * (self.items or 0)) if known else None,
        }


def estimate(
    source: Source,
    encoder: Encoder | DevicePool,
    *,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Encode the first hundred items into a store that is thrown away, and reckon from it.

    More than a hundred, where fewer would leave lanes idle that a whole run keeps busy.

    Args:
        source: what would be encoded, as if none of it were stored yet.
        encoder: as in `encode`.
        options: likewise.
        progress: told about each of them.

    Raises:
        SourceError: there is no item, or as `encode`.
    """
    options = options or EncodeOptions()
    items = items_expected(source, options)
    # Enough for every lane to have work, or it would seem slower than it is.
    sample = max(SAMPLE, lanes_of(encoder) * (options.batch_size or encoder.default_batch_size))
    few = replace(options, limit=min(options.limit or sample, sample), overwrite=False)
    with tempfile.TemporaryDirectory(prefix="vlre-estimate-") as folder:
        store = Path(folder) / "store"
        report = encode(source, store, encoder=encoder, options=few, progress=progress)
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    looked = report.images.encoded + report.images.reused + report.images.failed
    if not looked:
        raise SourceError(f"{source.name} holds no items that were asked for")
    return Estimate(
        items=items,
        sampled=looked,
        failed=report.images.failed,
        seconds_per_item=report.seconds / looked,
        bytes_per_item=size / looked,
    )
