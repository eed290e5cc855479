"""Warns of pictures that cross from what is trained on to what it is judged by."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.duplicates import StoredPictures, crossing, vector_feature
from retrieval_engine.errors import FeatureMissing
from retrieval_engine.records import Modality
from retrieval_engine.store import Store
from retrieval_engine.train.finetune.captioned import CaptionedImages, Sets

_ALONE = 0.98  # cosine from which two files that cannot be read count as one image
_SHOWN = 3


def crossing_notes(store: Store, sets: Sets) -> list[str]:
    """A line for each held-out set that has near-duplicates of training images in it.

    A store without vectors of images has one line that says so.

    Args:
        store: what the run trains on.
        sets: of the run. Equal bytes are taken out of the training set before.
    """
    try:
        vector_feature(store)
    except FeatureMissing:
        return [
            "no vectors of images are stored: copies that cross into val or test are not sought"
        ]
    held: list[tuple[str, StoredPictures, Sequence[str]]]
    held = [("those to select on", _pictures(store, sets.val), _ids(store, sets.val))]
    if "test" in set(store.items()["split"].to_pylist()):
        gallery = store.gallery("test")
        held.append(("split test", StoredPictures.of(gallery), gallery.ids))
    train = _pictures(store, sets.train)
    return list(_notes(store, train, held)) if len(train.rows) else []


def _notes(
    store: Store, train: StoredPictures, held: list[tuple[str, StoredPictures, Sequence[str]]]
) -> Iterator[str]:
    feature = vector_feature(store)
    for what, pictures, ids in held:
        found = np.flatnonzero(crossing(pictures, train, feature, alone=_ALONE).near)
        if len(found):
            shown = ", ".join(ids[i] for i in found[:_SHOWN].tolist())
            yield f"LEAK: {len(found):,} of {what} are nearly images to train on ({shown})"


def _chosen(store: Store, data: CaptionedImages) -> NDArray[np.int64]:
    """Images that have vectors: trained from pixels, some may not."""
    return np.flatnonzero(store.having(Modality.IMAGES, vector_feature(store), data.rows))


def _ids(store: Store, data: CaptionedImages) -> list[str]:
    return [data.ids[i] for i in _chosen(store, data)]


def _pictures(store: Store, data: CaptionedImages) -> StoredPictures:
    chosen = _chosen(store, data)
    return StoredPictures(store=store, rows=data.rows[chosen], uris=[data.uris[i] for i in chosen])
