"""Builds an index folder from a store."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_engine import __version__
from retrieval_engine.index import backends, measured
from retrieval_engine.index.backends import Rows
from retrieval_engine.index.build_record import IndexManifest, describe, store_as_seen
from retrieval_engine.index.catalog import SavedCatalog
from retrieval_engine.index.directory import SavedIndex, replacing
from retrieval_engine.index.grouping import GroupedIndex
from retrieval_engine.index.recipes import Recipe, find_recipe
from retrieval_engine.index.vectors import StoredVectors, image_vectors
from retrieval_engine.machine import has_cuda_driver
from retrieval_engine.models.device import pick_device
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Json, Modality
from retrieval_engine.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """What was built and how good it is.

    Attributes:
        index: path of the folder.
        recipe: name of the recipe.
        items: number of items.
        rows: number of vectors; 32 an item for BLIP-2.
        bytes: length of all files.
        seconds: time of the build, measuring included.
        recall_at_10: share of the 10 best items it finds, against exact search, in [0, 1].
        filtered_recall_at_10: the same where a filter leaves a share of the items, by that share.
        p50_ms: median milliseconds of a search with one query.
        effort: search setting chosen, e.g. `{"nprobe": 16}`.
        queries: number of queries that recall was measured with.
        queries_are: `captions` of the store, or `images` where it has none.
        remarks: lines for people about what falls short.
    """

    index: str
    recipe: str
    items: int
    rows: int
    bytes: int
    seconds: float
    recall_at_10: float
    filtered_recall_at_10: dict[str, float]
    p50_ms: float
    effort: dict[str, int]
    queries: int
    queries_are: str
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The report as one JSON object."""
        value: dict[str, Json] = asdict(self)
        return value | {"remarks": list(self.remarks)}


class _Built(NamedTuple):
    """Rows on disk, and what they were made of."""

    recipe: Recipe
    factory: str
    rows: Rows


class _Tuned(NamedTuple):
    """What rows find at the search effort chosen for them."""

    recall: float  # of the 10 best items, in [0, 1]
    filtered: dict[float, float]  # the same by the share that a filter leaves
    queries: NDArray[np.float32]  # (q, dim)
    asked: Modality  # which side the queries are of


def build_index(  # noqa: PLR0913 (what people ask for)
    store: Store,
    out: str | Path,
    *,
    recipe: str = "auto",
    split: str | None = None,
    feature: str = "itc",
    uri: str = "",
    device: str = "auto",
    progress: Progress | None = None,
    seed: int = 0,
) -> IndexReport:
    """Build an index over a store's images, and measure it.

    Vectors are read block by block; what is held in memory is the index itself. An index that is
    already at `out` stays in use until the new one is whole.

    Args:
        store: where the vectors are.
        out: folder to make or replace.
        recipe: see `recipes.find_recipe`.
        split: only the items of this split.
        feature: name of the image feature; of shape (vectors per item, dim).
        uri: of the server that is to hold the rows, for a recipe whose backend has one.
        device: of exact search, and of what the backend can do there; `auto`, or torch's name.
        progress: told what is going on.
        seed: of the training and query samples.

    Returns:
        Sizes, times, and recall against exact search.

    Raises:
        UsageError: the recipe is unknown, or `out` is something else than an index.
        FeatureMissing: the store lacks the feature, or it is no list of vectors.
        IndexFailure: nothing to index, NaN among the vectors, or the library failed.
    """
    begin = time.perf_counter()
    progress, out = progress or Silent(), Path(out)
    vectors = image_vectors(store, feature, split)
    chosen, why = find_recipe(recipe, vectors.rows)
    chosen = backends.placed(chosen, uri, out)
    how = backends.How(seed=seed, device=_device(device), progress=progress)
    if why:
        progress.say(why)
    with replacing(out) as folder:
        progress.start(f"building {chosen.name} of {vectors.rows:,} rows", None)
        backend = backends.load(chosen.backend)
        factory = backend.build(chosen, vectors, folder, how)
        built = _Built(chosen, factory, backend.open_rows(folder, {}))
        progress.start("comparing with exact search", None)
        tuned = _tune(store, vectors, built, how)
        progress.start("writing", None)
        catalog = SavedCatalog.of_store(store, split)
        catalog.save(folder)
        manifest = _manifest(store, vectors, built, folder, catalog.left_out)
        report = _report(out, built, tuned, SavedIndex(out, manifest, built.rows), begin)
        replace(manifest, report=report.to_json()).write(folder)
    backends.settle(out, manifest)
    progress.stop()
    return report


def _device(name: str) -> str:
    if name == "auto" and not has_cuda_driver():
        return "cpu"  # known without torch
    return str(pick_device(name))


def _tune(store: Store, vectors: StoredVectors, built: _Built, how: backends.How) -> _Tuned:
    """Set the search effort that the recipe's recall takes, as exact search judges it."""
    queries, asked = measured.sample_queries(store, vectors, how.seed)
    exact = vectors.exact(how.device)
    expected = measured.expect(exact, queries)
    index = GroupedIndex(built.rows, vectors.per_item)
    found = measured.tune(built.rows, index, expected, built.recipe.target_recall)
    filtered = measured.tune_filters(built.rows, index, exact, queries, how.seed)
    return _Tuned(found, filtered, queries, asked)


def _manifest(
    store: Store, vectors: StoredVectors, built: _Built, folder: Path, left_out: int
) -> IndexManifest:
    recipe = built.recipe
    return IndexManifest(
        recipe=recipe.name,
        backend=recipe.backend,
        factory=built.factory,
        effort=built.rows.effort,
        store=str(store.path),
        fingerprint=store.fingerprint,
        split=vectors.gallery.split or "",
        **store_as_seen(store, left_out),
        spec=store.spec.to_json(),
        feature=vectors.feature.name,
        feature_fingerprint=vectors.feature.fingerprint,
        items=vectors.items,
        rows_per_item=vectors.per_item,
        dim=vectors.dim,
        folder=folder.name,
        files=tuple(describe(path) for path in sorted(folder.iterdir())),
        versions={
            "vlre": __version__,
            recipe.backend: backends.load(recipe.backend).version(),
        },
    )


def _report(
    out: Path, built: _Built, tuned: _Tuned, saved: SavedIndex, begin: float
) -> IndexReport:
    """The figures of a build that began at `begin`; the last of them, its speed, is taken here."""
    p50_ms = measured.p50_ms(saved, tuned.queries)
    return IndexReport(
        index=str(out),
        recipe=built.recipe.name,
        items=saved.manifest.items,
        rows=saved.manifest.rows,
        bytes=saved.manifest.bytes,
        recall_at_10=round(tuned.recall, 4),
        filtered_recall_at_10={f"{s:g}": round(r, 4) for s, r in tuned.filtered.items()},
        p50_ms=round(p50_ms, 4),
        seconds=round(time.perf_counter() - begin, 3),
        effort=dict(built.rows.effort),
        queries=len(tuned.queries),
        queries_are=str(tuned.asked),
        remarks=_remarks(built.recipe, tuned, built.rows),
    )


def _remarks(recipe: Recipe, tuned: _Tuned, rows: Rows) -> tuple[str, ...]:
    remarks = []
    if tuned.recall < recipe.target_recall:
        remarks.append(
            f"recall@10 is {tuned.recall:.3f}, below the {recipe.target_recall} asked for, at every search "
            "effort: a graph may not reach it for words (an ivf recipe does), and rows kept in few "
            "bits lose it (fp16 storage, or ,Refine(SQfp16) after the factory string, keeps it)"
        )
    share, worst = min(tuned.filtered.items(), key=lambda each: each[1])
    if worst < min(tuned.recall, recipe.target_recall) - 0.01:
        remarks.append(
            f"with filters that leave {share:.1%} of the items recall@10 is {worst:.3f}: less than "
            "without"
        )
    if tuned.asked is Modality.IMAGES and rows.effort:
        remarks.append(
            "the store has no captions, so recall was measured with images as queries; words lie "
            "further from images and may find less"
        )
    return tuple(remarks)
