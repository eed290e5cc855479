"""A store seen through a head: its `itc` is what the head makes of the features it reads.

Search, recall and indices ask a store for `itc` and need not know of heads at all. Projections
are computed block by block while they are read; `project_store` writes them down for good.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import FeatureMissing
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Feature, Json, Modality
from retrieval_engine.store import Gallery, Store, StoreWriter, open_store
from retrieval_engine.store.keys import Keys
from retrieval_engine.store.manifest import Manifest

if TYPE_CHECKING:
    # Heads are torch modules; most stores are opened without one.
    from retrieval_engine.heads import SavedHead

ITC = "itc"
_PART_ROWS = 16384


class ProjectedStore(Store):
    """A store whose `itc` is a head's output; everything else is as it is.

    Args:
        store: what the head was trained on, or features of the same encoder.
        saved: the head.

    Raises:
        FingerprintMismatch: the head belongs to another encoder.
        FeatureMissing: the store lacks what the head reads.
    """

    def __init__(self, store: Store, saved: "SavedHead") -> None:
        super().__init__(store.path, store.header, store.manifest)
        # What the head reads may be called `itc` too: asked for here it would be the head's own.
        self.saved, self._plain = saved, store
        features = {m: store.features(m) for m in Modality}
        saved.check(features, store.fingerprint)
        name = saved.config.feature
        if missing := [str(m) for m in Modality if name not in features[m]]:
            raise FeatureMissing(
                f"{store.path} has no {name} of {' and '.join(missing)}, which head {saved.path} "
                "reads",
                hint=f"encode again with `EncodeOptions(features=({name!r},))`",
            )

    def __reduce__(self) -> tuple[object, ...]:
        return ProjectedStore, (Store(self.path, self.header, self.manifest), self.saved)

    def _holding(self, manifest: Manifest) -> Store:
        return ProjectedStore(super()._holding(manifest), self.saved)

    def features(self, modality: Modality) -> dict[str, Feature]:
        """Those of the store, with the head's in place of `itc`."""
        features = self._plain.features(modality)
        form = features[self.saved.config.feature]
        vectors = form.shape[0] if len(form.shape) == 2 else 1
        # In the dtype it would be stored in, so that stored and fresh projections are equal.
        emitted = self.saved.emits(modality, vectors, form.dtype)
        return {**features, ITC: replace(emitted, name=ITC)}

    def rows(self, modality: Modality, keys: Keys, feature: str | None = None) -> NDArray[np.int64]:
        """See `Store`; rows have `itc` where they have what the head reads."""
        return self._plain.rows(modality, keys, self._read_name(feature))

    def count(self, modality: Modality, feature: str | None = None) -> int:
        """See `Store`."""
        return self._plain.count(modality, self._read_name(feature))

    def _read_name(self, feature: str | None) -> str | None:
        return self.saved.config.feature if feature == ITC else feature

    def read(
        self, modality: Modality, feature: str, rows: "NDArray[np.int64] | slice"
    ) -> NDArray[Any]:
        """See `Store`; `itc` is projected here and now."""
        if feature != ITC:
            return self._plain.read(modality, feature, rows)
        states = self._plain.read(modality, self.saved.config.feature, rows)
        projected = self.saved.head.project(modality, states)
        return projected.astype(self.features(modality)[ITC].dtype)


def open_through(path: str | Path, head: str | Path | None) -> Store:
    """The store at a path, seen through the head in a directory if there is one.

    Raises:
        StoreNotFound: there is no store.
        CheckpointNotFound: there is no head.
        FingerprintMismatch: the head belongs to another encoder.
    """
    store = open_store(path)
    if head is None:
        return store
    from retrieval_engine.heads import load_head

    return ProjectedStore(store, load_head(head))


def leak_free(gallery: Gallery, saved: "SavedHead") -> tuple[Gallery, int]:
    """A gallery without the images that a head was trained on or selected with.

    Returns:
        The rest of the gallery, and the number of images left out.
    """
    roles = saved.trained_on().seen(gallery.sources, gallery.ids, gallery.keys)
    kept = np.flatnonzero([not role for role in roles])
    seen = len(gallery) - len(kept)
    return (gallery.only(kept) if seen else gallery), seen


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionReport:
    """What `project_store` wrote.

    Attributes:
        store: directory of the store.
        feature: name of the new feature.
        images: rows written; those that were there already do not count.
        captions: the same of captions.
        seconds: wall time.
    """

    store: str
    feature: str
    images: int
    captions: int
    seconds: float

    def to_json(self) -> dict[str, Json]:
        """The report as one JSON object."""
        counts: dict[str, Json] = {
            "images": {"encoded": self.images},
            "captions": {"encoded": self.captions},
        }
        return asdict(self) | counts | {"seconds": round(self.seconds, 3)}


def project_store(
    path: str | Path, saved: "SavedHead", *, progress: Progress | None = None
) -> ProjectionReport:
    """Write what a head makes of a store's features beside them; no model is run.

    Args:
        path: directory of the store.
        saved: the head; the new feature is called `saved.feature`.
        progress: told about every row.

    Raises:
        FingerprintMismatch: the head belongs to another encoder.
        FeatureMissing: the store lacks what the head reads.
    """
    began, progress = time.perf_counter(), progress or Silent()
    store = ProjectedStore(open_store(path), saved)
    forms = {m: replace(store.features(m)[ITC], name=saved.feature) for m in Modality}
    written = dict.fromkeys(Modality, 0)
    with StoreWriter.open(
        path, spec=store.spec, features={m: [forms[m]] for m in Modality}
    ) as writer:
        for modality in Modality:
            progress.start(f"projecting {modality}", store.count(modality, ITC))
            for keys, rows in _blocks(store, modality):
                there = writer.present(modality, keys)
                keys = [key for key, is_there in zip(keys, there, strict=True) if not is_there]
                if keys:
                    part = writer.part()
                    arrays = {saved.feature: store.read(modality, ITC, rows[~there])}
                    part.add(modality, keys, arrays)
                    part.commit()
                written[modality] += len(keys)
                progress.advance(len(rows))
            progress.stop()
    return ProjectionReport(
        store=str(path),
        feature=saved.feature,
        images=written[Modality.IMAGES],
        captions=written[Modality.CAPTIONS],
        seconds=time.perf_counter() - began,
    )


def _blocks(store: Store, modality: Modality) -> Iterator[tuple[list[str], NDArray[np.int64]]]:
    """Keys and rows of everything that live items need, a part's worth at a time."""
    table = store.items()
    if modality is Modality.IMAGES:
        keys = table["key"].to_pylist()
    else:
        keys = [c["key"] for captions in table["captions"].to_pylist() for c in captions]
    keys = list(dict.fromkeys(keys))
    for start in range(0, len(keys), _PART_ROWS):
        some = keys[start : start + _PART_ROWS]
        rows = store.rows(modality, some, ITC)
        yield [k for k, row in zip(some, rows, strict=True) if row >= 0], rows[rows >= 0]
