"""What can be said about a store at a glance."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from retrieval_engine.records import Json, Modality
from retrieval_engine.store.filters import Column, ItemFilter
from retrieval_engine.store.items import FACTS, live_items, sources, splits
from retrieval_engine.store.job_shards import jobs_of
from retrieval_engine.store.manifest import FORMAT_VERSION, feature_json
from retrieval_engine.store.reader import Store

_LONGEST_TYPE = 40  # a struct of many fields would fill a screen; as JSON it is whole


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """A store in figures.

    Attributes:
        store: what the figures are about.
        items: number of live items.
        splits: number of live items by split, largest first.
        sources: number of live items by source, in the order of their first items.
        rows: number of distinct keys of each modality with at least one current feature.
        coverage: number of them that have each feature, by modality and feature.
        failures: number of items in the failure ledger.
        size_bytes: of all files the manifest lists.
        columns: what filters can name.
    """

    store: Store
    items: int
    splits: Mapping[str, int]
    sources: Mapping[str, int]
    rows: Mapping[Modality, int]
    coverage: Mapping[Modality, Mapping[str, int]]
    failures: int
    size_bytes: int
    columns: Sequence[Column]

    def to_json(self) -> dict[str, Json]:
        """The figures as one JSON object."""
        store = self.store
        sides: dict[str, Json] = {}
        for modality in Modality:
            features: dict[str, Json] = {
                name: {**feature_json(form), "rows": self.coverage[modality][name]}
                for name, form in store.features(modality).items()
            }
            sides[str(modality)] = {"rows": self.rows[modality], "features": features}
        return {
            "store": str(store.path),
            "format_version": FORMAT_VERSION,
            "fingerprint": store.fingerprint,
            "spec": store.spec.to_json(),
            "created": store.header.created,
            "items": self.items,
            "splits": dict(self.splits),
            "sources": dict(self.sources),
            **sides,
            "failures": self.failures,
            "jobs": [job.to_json() for job in jobs_of(store.manifest.shards)],
            "parts": len(store.manifest.parts),
            "files": len(store.manifest.files()),
            "bytes": self.size_bytes,
            "columns": [column.to_json() for column in self.columns],
        }

    def lines(self) -> Iterator[tuple[str, str]]:
        """The figures as name and text, for people."""
        store = self.store
        yield "store", f"{store.path}, made {store.header.created}"
        yield "encoder", f"{store.spec.checkpoint} ({store.spec.family}, {store.fingerprint[:12]})"
        shares = ", ".join(f"{name or 'no split'} {n:,}" for name, n in self.splits.items())
        yield "items", f"{self.items:,}" + (f" ({shares})" if shares else "")
        for source, count in self.sources.items():
            yield "  source", f"{source} {count:,}"
        for job in jobs_of(store.manifest.shards):
            yield "  job", str(job)
        for modality in Modality:
            yield str(modality), f"{self.rows[modality]:,} rows"
            for name, form in store.features(modality).items():
                shape = "x".join(map(str, form.shape)) or "1"
                have = self.coverage[modality][name]
                lacking = self.rows[modality] - have
                tail = f", lacking for {lacking:,}" if lacking else ""
                yield f"  {name}", f"{shape} {form.dtype}{tail}"
        yield "failures", f"{self.failures:,}"
        yield "files", f"{len(store.manifest.files()):,} files, {self.size_bytes:,} bytes"
        yield (
            "columns",
            "what filters can name: type, number of items that have a value, an example",
        )
        for column in self.columns:
            tail = f", e.g. {column.example}" if column.example else ""
            whole = len(column.type) <= _LONGEST_TYPE
            kind = column.type if whole else f"{column.type.partition('(')[0]}(…)"
            yield f"  {column.name}", f"{kind}, {column.count:,}{tail}"


def describe(store: Store) -> StoreFacts:
    """The figures of a store; reads keys and items, no features."""
    names = ("source", "id", "uri", "split", "size_bytes", "meta", *FACTS.names)
    table = live_items(store.path, store.manifest, names)
    return StoreFacts(
        store=store,
        items=len(table),
        splits=splits(table),
        sources=sources(table),
        rows={modality: store.count(modality) for modality in Modality},
        coverage={
            modality: {name: store.count(modality, name) for name in store.features(modality)}
            for modality in Modality
        },
        failures=len(store.failures()),
        size_bytes=sum(entry.size_bytes for entry in store.manifest.files()),
        columns=ItemFilter(table).columns(),
    )
