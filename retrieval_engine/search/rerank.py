"""The nearest images of a query put in the cross-encoder's order: ITM + ITC.

Only the text side runs for each candidate. Image states come from the store where it keeps
`tokens`; else the candidates' images are read and encoded, each once for all queries.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.image_tokens import ImageTokens
from retrieval_engine.errors import UsageError
from retrieval_engine.index.catalog import Catalog
from retrieval_engine.index.grouping import Items, Scores
from retrieval_engine.models import Encoder
from retrieval_engine.models.encoder import ReadsTokens
from retrieval_engine.store import Store


def rerank_images(
    texts: Sequence[str],
    scores: Scores,
    items: Items,
    *,
    store: Store | None,
    catalog: Catalog,
    encoder: Encoder,
    is_guest: bool = False,
) -> tuple[Scores, Items]:
    """Candidates in the order of `itm_logit[1] + itc`, as BLIP and LAVIS re-rank.

    Args:
        texts: q queries.
        scores: (q, k) float32 ITC scores of the candidates.
        items: (q, k) item numbers, -1 where there are fewer.
        store: where image states may be.
        catalog: tells where an item's image is.
        encoder: whose cross-encoder judges; its family must have one.
        is_guest: the encoder is another one than the store's. It encodes the candidates' images
            itself, and its own ITC scores count.

    Returns:
        (q, k) new scores and items, best first; equal scores: lower item number first.

    Raises:
        UsageError: the checkpoint has no matching head.
        SourceError: an image whose states are not stored cannot be read.
    """
    found = items >= 0
    wanted, number = np.unique(items[found], return_inverse=True)
    query = np.nonzero(found)[0]
    store = None if is_guest else store
    rows = np.full(len(wanted), -1) if store is None else catalog.image_rows(store, wanted)
    uris = [entry.uri for entry in catalog.entries(wanted)]
    tokens: Callable[[NDArray[np.int64]], NDArray[Any]]
    tokens = ImageTokens(store, rows, uris, encoder)
    pairs: NDArray[np.int64] = np.stack([number.ravel(), query], axis=1)
    itc = scores[found]
    if is_guest:
        states = tokens(np.arange(len(wanted)))
        tokens, itc = states.__getitem__, _itc(encoder, states, texts, pairs)
    total = np.full(items.shape, -np.inf, dtype=np.float32)
    total[found] = encoder.matcher().score_pairs(tokens, texts, pairs) + itc
    order = np.lexsort((items, -total), axis=1)
    return np.take_along_axis(total, order, axis=1), np.take_along_axis(items, order, axis=1)


def _itc(
    encoder: Encoder, states: NDArray[Any], texts: Sequence[str], pairs: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(p,) ITC scores of (image, text) pairs, from the images' vision states."""
    if not isinstance(encoder, ReadsTokens):
        raise UsageError(f"`rerank_model` {encoder.spec.checkpoint} keeps no vision states")
    images = encoder.encode_tokens(states, ["itc"])["itc"]
    words = encoder.encode_texts(texts, ["itc"])["itc"]
    found: NDArray[np.float32] = np.einsum("iqd,td->itq", images, words[:, 0]).max(-1)
    return found[pairs[:, 0], pairs[:, 1]]
