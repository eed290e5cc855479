"""Brings an index up to date with its store without building it again."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import FingerprintMismatch, IndexFailure
from retrieval_engine.index import backends
from retrieval_engine.index.behind import Behind, compare
from retrieval_engine.index.build_record import IndexManifest, describe_folder, store_as_seen
from retrieval_engine.index.directory import SavedIndex, open_index, replacing
from retrieval_engine.index.recipes import automatic
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Json, Modality
from retrieval_engine.store import Store

_BLOCK_ROWS = 65_536
# Lists and codes were shaped by other rows: above this share of changes they fit less and less.
_CHANGED = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What an update changed.

    Attributes:
        index: path of the folder.
        recipe: name of the recipe it was built with.
        added: number of items that came in.
        removed: number of items that went.
        items: number of items now.
        changed_since_build: items added and removed since it was built, by all updates.
        seconds: wall time.
        remarks: lines for people: when building again pays.
    """

    index: str
    recipe: str
    added: int
    removed: int
    items: int
    changed_since_build: int
    seconds: float
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The report as one JSON object."""
        value: dict[str, Json] = asdict(self)
        return value | {"remarks": list(self.remarks)}


def update_index(
    store: Store, out: str | Path, *, progress: Progress | None = None
) -> UpdateReport:
    """Add to an index what is newer in its store, and take out what is gone.

    Nothing is trained and no recall is measured. Readers keep the old index until the new one is
    whole, and go on with it as long as they have it open.

    Args:
        store: the store the index was built from, seen through the same head.
        out: the index's folder.
        progress: told what is going on.

    Raises:
        IndexFailure: there is no index, its recipe cannot be updated so, or the disk refuses.
        FingerprintMismatch: the index holds vectors of another encoder.
    """
    begin = time.perf_counter()
    progress, out = progress or Silent(), Path(out)
    IndexManifest.read(out)  # before a folder is made where none is
    with replacing(out) as folder:
        saved = open_index(out)
        _check_vectors(saved, store)
        behind = compare(saved, store, saved.manifest.split or None)
        kept = behind.now >= 0
        if not kept.any() and not len(behind.newer):
            raise IndexFailure(f"{store.path} holds none of the items of {out} any more")
        progress.start(f"adding {len(behind.newer):,} items", None)
        old = out / saved.manifest.folder
        _extend(saved, old, folder, kept, behind)
        progress.start("writing", None)
        catalog = behind.catalog.take(np.concatenate([behind.now[kept], behind.newer]))
        catalog.save(folder, behind=old if behind.grown else None)
        changed = saved.manifest.changed_since_build + len(behind.newer) + int((~kept).sum())
        manifest = replace(
            saved.manifest,
            items=int(kept.sum()) + len(behind.newer),
            **store_as_seen(store, catalog.left_out),
            changed_since_build=changed,
            store=str(store.path),
            folder=folder.name,
            files=describe_folder(folder, old, saved.manifest.files),
        )
        manifest.write(folder)
    backends.settle(out, manifest)
    progress.stop()
    return UpdateReport(
        index=str(out),
        recipe=manifest.recipe,
        added=len(behind.newer),
        removed=int((~kept).sum()),
        items=manifest.items,
        changed_since_build=changed,
        seconds=round(time.perf_counter() - begin, 3),
        remarks=_remarks(manifest, store, out),
    )


def _check_vectors(saved: SavedIndex, store: Store) -> None:
    feature = store.features(Modality.IMAGES).get(saved.manifest.feature)
    if feature is None or feature.fingerprint != saved.manifest.feature_fingerprint:
        raise FingerprintMismatch(
            f"index {saved.path}",
            seen=saved.manifest.fingerprint,
            expected=store.fingerprint,
            hint="name the `head` it was built with, or build it again with `build_index()`",
        )


def _extend(
    saved: SavedIndex, old: Path, folder: Path, kept: NDArray[np.bool_], behind: Behind
) -> None:
    manifest = saved.manifest
    extend = getattr(backends.load(manifest.backend), "extend", None)
    if extend is None:
        raise IndexFailure(
            f"an index of {manifest.backend} cannot be updated",
            hint="build it again with `build_index()`",
        )
    extend(old, folder, np.repeat(kept, manifest.rows_per_item), _blocks(saved, behind))


def _blocks(saved: SavedIndex, behind: Behind) -> Iterator[NDArray[np.float32]]:
    """(b, dim) float32 rows of the newer items, in order."""
    step = max(1, _BLOCK_ROWS // saved.rows_per_item)
    for start in range(0, len(behind.rows), step):
        rows = behind.rows[start : start + step]
        block = behind.store.read(Modality.IMAGES, saved.manifest.feature, rows)
        yield np.ascontiguousarray(block.reshape(-1, saved.dim), dtype=np.float32)


def _remarks(manifest: IndexManifest, store: Store, out: Path) -> tuple[str, ...]:
    again = f"`build_index(store={str(store.path)!r}, out={str(out)!r})`"
    remarks = []
    trained = bool(manifest.effort)
    if trained and manifest.changed_since_build > _CHANGED * manifest.items:
        share = manifest.changed_since_build / manifest.items
        remarks.append(
            f"{share:.0%} of the items changed since it was built: {again} fits it to them"
        )
    better = automatic(manifest.rows).name
    if not trained and not better.startswith("flat"):
        remarks.append(
            f"{manifest.rows:,} rows are compared one by one: {again} makes {better} of them, which "
            "is much faster"
        )
    return tuple(remarks)
