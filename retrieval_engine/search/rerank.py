"""The nearest images of a query put in the cross-encoder's order: ITM + ITC.

Only the text side runs for each candidate. Image states come from the store where it keeps
`tokens`; else the candidates' images are read and encoded, each once for all queries.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.image_tokens import ImageTokens
from retrieval_engine.index.catalog import Catalog
from retrieval_engine.index.grouping import Items, Scores
from retrieval_engine.models import Encoder
from retrieval_engine.store import Store


def rerank_images(
    texts: Sequence[str],
    scores: Scores,
    items: Items,
    *,
    store: Store | None,
    catalog: Catalog,
    encoder: Encoder,
) -> tuple[Scores, Items]:
    """Candidates in the order of `itm_logit[1] + itc`, as BLIP and LAVIS re-rank.

    Args:
        texts: q queries.
        scores: (q, k) float32 ITC scores of the candidates.
        items: (q, k) item numbers, -1 where there are fewer.
        store: where image states may be.
        catalog: tells where an item's image is.
        encoder: of the queries; its family must have a cross-encoder.

    Returns:
        (q, k) new scores and items, best first; equal scores: lower item number first.

    Raises:
        UsageError: the checkpoint has no matching head.
        SourceError: an image whose states are not stored cannot be read.
    """
    found = items >= 0
    wanted, number = np.unique(items[found], return_inverse=True)
    query = np.nonzero(found)[0]
    rows = np.full(len(wanted), -1) if store is None else catalog.image_rows(store, wanted)
    uris = [entry.uri for entry in catalog.entries(wanted)]
    tokens = ImageTokens(store, rows, uris, encoder)
    pairs: NDArray[np.int64] = np.stack([number.ravel(), query], axis=1)
    total = np.full(items.shape, -np.inf, dtype=np.float32)
    total[found] = encoder.matcher().score_pairs(tokens, texts, pairs) + scores[found]
    order = np.lexsort((items, -total), axis=1)
    return np.take_along_axis(total, order, axis=1), np.take_along_axis(items, order, axis=1)
