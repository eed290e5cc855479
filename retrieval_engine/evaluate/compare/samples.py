"""Sample queries and what every run finds for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.records import Modality
from retrieval_engine.store import Gallery

_READ_ROWS = 2048
_QUERIES, _SHOWN = 6, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleHit:
    """One image found: its id, where its bytes are, and whether the caption is its own."""

    item_id: str
    uri: str
    is_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One caption as a query.

    Attributes:
        text: the caption.
        hits: for each run its best images, best first.
        ranks: for each run the 0-based rank of the right image.
    """

    text: str
    hits: Mapping[str, Sequence[SampleHit]]
    ranks: Mapping[str, int]


def sample_queries(galleries: Mapping[str, Gallery]) -> list[Sample]:
    """Captions drawn at random, one an image, and what each run finds for them.

    Queries are not chosen by how well any run does.

    Args:
        galleries: the same images in the same order.
    """
    first = next(iter(galleries.values()))
    rng = np.random.default_rng(0)
    captioned = np.unique(first.caption_image)
    images = rng.choice(captioned, min(_QUERIES, len(captioned)), replace=False)
    captions = np.array([rng.choice(np.array(first.captions_of(int(i)))) for i in images], np.int64)
    scores = {name: _scores(gallery, captions) for name, gallery in galleries.items()}
    samples = []
    for number, (image, caption) in enumerate(zip(images.tolist(), captions.tolist(), strict=True)):
        hits, ranks = {}, {}
        for name, gallery in galleries.items():
            order = np.argsort(-scores[name][:, number], kind="stable")
            ranks[name] = int(np.flatnonzero(order == image)[0])
            hits[name] = [
                SampleHit(item_id=gallery.ids[i], uri=gallery.uris[i], is_right=i == image)
                for i in order[:_SHOWN].tolist()
            ]
        samples.append(Sample(text=first.caption_texts[caption], hits=hits, ranks=ranks))
    return samples


def _scores(gallery: Gallery, captions: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, c) scores of every image for some captions."""
    rows = gallery.caption_rows[captions]
    texts = gallery.store.read(Modality.CAPTIONS, "itc", rows)[:, 0].astype(np.float32)
    blocks = [
        (block.astype(np.float32) @ texts.T).max(axis=1)
        for _, block in gallery.image_blocks("itc", _READ_ROWS)
    ]
    return np.concatenate(blocks)
