"""What an encode run is told, and what it tells."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from retrieval_engine.encoding.device import DeviceTally
from retrieval_engine.encoding.steps import Described
from retrieval_engine.errors import UsageError, require_at_least
from retrieval_engine.models import Encoder
from retrieval_engine.records import Failure, Feature, Item, JobShard, Json, Modality
from retrieval_engine.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """How to encode; none of it changes the vectors but `features` and `store_dtype`.

    Attributes:
        features: any of `itc`, `pooled`, `tokens` and what else the family offers.
        store_dtype: what floating-point features are kept in.
        split: only items of this split; empty for all.
        limit: only the first items; 0 for all.
        shard: only the items of this share of the job; None for all.
        batch_size: images per forward pass; 0 lets the device decide.
        workers: decode workers; 0 means one for each core.
        worker_kind: `threads`, `processes` or `serial`.
        part_rows: images per shard at most; what a kill loses is less than one shard.
        overwrite: begin a new store in place of the one that is there.
    """

    features: tuple[str, ...] = ("itc", "pooled")
    store_dtype: str = "float16"
    split: str = ""
    limit: int = 0
    shard: JobShard | None = None
    batch_size: int = 0
    workers: int = 0
    worker_kind: str = "threads"
    part_rows: int = 2048
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        require_at_least(self, 0, "limit", "batch_size", "workers")
        require_at_least(self, 1, "part_rows")

    def wants(self, item: Item) -> bool:
        """Whether an item is of the split and the shard that are asked for."""
        of_split = not self.split or item.split == self.split
        return of_split and (self.shard is None or self.shard.holds(item.id))

    @classmethod
    def like(cls, store: Store, encoder: Encoder) -> "EncodeOptions":
        """To encode into a store as it was encoded, as far as this encoder can."""
        forms = store.features(Modality.IMAGES)
        if "itc" not in forms:
            return cls()
        names = tuple(name for name in forms if name in encoder.features(Modality.IMAGES))
        return cls(features=names, store_dtype=forms["itc"].dtype)

    def chosen(self, encoder: Described) -> dict[Modality, list[Feature]]:
        """The features to store for each modality, floating-point ones in `store_dtype`.

        `tokens` of captions are their `token_ids` and `token_mask`.

        Raises:
            UsageError: no name, or one that the encoder emits for neither modality.
        """
        offered = {modality: encoder.features(modality) for modality in Modality}
        more = ("token_ids", "token_mask") if "tokens" in self.features else ()
        allowed = set().union(*offered.values())
        emitted, model = ", ".join(sorted(allowed)), encoder.spec.checkpoint
        if not self.features:
            raise UsageError(f"no feature is named; {model} emits {emitted}")
        if unknown := [name for name in self.features if name not in allowed]:
            raise UsageError(f"{model} emits no feature {unknown[0]!r}; it emits {emitted}")

        def kept(feature: Feature) -> Feature:
            floating = np.issubdtype(np.dtype(feature.dtype), np.floating)
            return replace(feature, dtype=self.store_dtype) if floating else feature

        wanted = dict.fromkeys((*self.features, *more))
        return {
            modality: [kept(features[name]) for name in wanted if name in features]
            for modality, features in offered.items()
        }


@dataclass(slots=True, kw_only=True)
class Tally:
    """How many of one modality were encoded, found in the store, or failed."""

    encoded: int = 0
    reused: int = 0
    failed: int = 0


@dataclass(slots=True, kw_only=True)
class EncodeReport:
    """What an encode run did.

    Attributes:
        store: directory of the store.
        fingerprint: of the encoder.
        images: per item.
        captions: per caption.
        removed: items of the source that are gone and were taken out of the store.
        moved: items of other sources that were taken out because their files are gone and the same
            content is here.
        seconds: wall time.
        read_seconds: of all decode workers together, reading and hashing.
        decode_seconds: of all decode workers together, decoding and resizing.
        model_seconds: inside the encoder, of all lanes or devices together.
        transfer_seconds: between this process and those of devices.
        write_seconds: writing the store.
        devices: what each device did, where they have processes of their own.
        failures: one per failed item.
    """

    store: str
    fingerprint: str
    images: Tally = field(default_factory=Tally)
    captions: Tally = field(default_factory=Tally)
    removed: int = 0
    moved: int = 0
    seconds: float = 0.0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    model_seconds: float = 0.0
    transfer_seconds: float = 0.0
    write_seconds: float = 0.0
    devices: list[DeviceTally] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def of(self, modality: Modality) -> Tally:
        """The counts of a modality."""
        return self.images if modality is Modality.IMAGES else self.captions

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Counts the seconds of the block as the encoder's."""
        start = time.perf_counter()
        yield
        self.model_seconds += time.perf_counter() - start

    def to_json(self) -> dict[str, Json]:
        """The report as one JSON object."""
        value: dict[str, Json] = asdict(self)
        del value["failures"]
        rate = round(self.images.encoded / max(self.seconds, 1e-9), 2)
        value |= {name: round(t, 3) for name, t in value.items() if isinstance(t, float)}
        if self.devices:
            value["devices"] = [tally.to_json(self.seconds) for tally in self.devices]
        else:
            del value["devices"]
        return value | {"images_per_s": rate}
