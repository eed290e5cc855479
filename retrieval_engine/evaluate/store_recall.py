"""Recall@K of a store or of a gallery in it: exact, both directions, all captions."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from retrieval_engine.metrics.pair_scores import Vectors
from retrieval_engine.metrics.race import Ties
from retrieval_engine.metrics.ranks import Contents, rank
from retrieval_engine.metrics.recall import KS, RecallReport, rows_of_vectors
from retrieval_engine.models.device import pick_device
from retrieval_engine.records import Modality
from retrieval_engine.store import Gallery, Store

_READ_ROWS = 2048  # images read from the store at once: 33 MB of BLIP-2 in float16


def evaluate_recall(
    store: Store,
    *,
    split: str | None = None,
    feature: str = "itc",
    ks: Sequence[int] = KS,
    ties: Ties = Ties.LOWER_INDEX,
    device: str = "auto",
) -> RecallReport:
    """Exact recall of a store: every image and every caption of a split.

    Args:
        store: where the features are.
        split: only items of this split; None takes all.
        feature: an L2-normalised feature that images and captions share.
        ks: cutoffs.
        ties: see `Ties`.
        device: where the products are computed; `auto`, or as torch names it.

    Raises:
        FeatureMissing: the store has no such feature.
        EvaluationError: the split holds no captions, or a vector holds NaN or infinity.
    """
    gallery = store.gallery(split)
    return gallery_recall(gallery, feature=feature, ks=ks, ties=ties, device=device)


def gallery_recall(
    gallery: Gallery,
    *,
    feature: str = "itc",
    ks: Sequence[int] = KS,
    ties: Ties = Ties.LOWER_INDEX,
    device: str = "auto",
) -> RecallReport:
    """Exact recall of a gallery, read in blocks; arguments as in `evaluate_recall`."""

    def images() -> Iterator[tuple[int, Vectors]]:
        for start, block in gallery.image_blocks(feature, _READ_ROWS):
            yield start, rows_of_vectors(block)

    # Blocks become float32 one by one: in float16 the whole takes half the memory.
    stored = gallery.store.features(Modality.CAPTIONS).get(feature)
    captions = gallery.captions(feature, dtype=stored.dtype if stored else np.float32)
    started = time.perf_counter()
    ranks = rank(
        images,
        rows_of_vectors(captions),
        gallery.caption_image,
        n_images=len(gallery.image_rows),
        # Rows are found by the sha256 of bytes or text: one row, one content.
        contents=Contents(images=gallery.image_rows, captions=gallery.caption_rows),
        ties=ties,
        device=str(pick_device(device)),
    )
    return RecallReport.of(
        ranks,
        gallery.caption_image,
        ks=ks,
        ties=ties,
        fingerprint=gallery.store.fingerprint,
        seconds=time.perf_counter() - started,
    )
