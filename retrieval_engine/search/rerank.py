"""The nearest images of a query put in the cross-encoder's order: ITM + ITC.

Only the text side runs for each candidate. Image states come from the store where it keeps
`tokens`; else the candidates' images are read and encoded, each once for all queries.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
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

# Vision states of images that are not stored, a megabyte each for BLIP ViT-B.
_KEPT_IMAGES = 256


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
    wanted, number = np.unique(items, return_inverse=True)
    number = number.reshape(items.shape)
    store = None if is_guest else store
    known = wanted[wanted >= 0]
    rows = np.full(len(known), -1) if store is None else catalog.image_rows(store, known)
    uris = [entry.uri for entry in catalog.entries(known)]
    tokens = _read_alike(ImageTokens(store, rows, uris, encoder))
    total = np.full(items.shape, -np.inf, dtype=np.float32)
    matcher = encoder.matcher()
    # Query by query: in one batch with others its scores would round otherwise.
    for query, text in enumerate(texts):
        found = np.flatnonzero(items[query] >= 0)
        images = number[query, found] - (len(wanted) - len(known))
        pairs = np.stack([images, np.zeros_like(images)], axis=1)
        itc = _itc(encoder, tokens(images), text) if is_guest else scores[query, found]
        total[query, found] = matcher.score_pairs(tokens, [text], pairs, of_images=True) + itc
    order = np.lexsort((items, -total), axis=1)
    return np.take_along_axis(total, order, axis=1), np.take_along_axis(items, order, axis=1)


def _read_alike(tokens: ImageTokens) -> Callable[[NDArray[np.int64]], NDArray[Any]]:
    """States of images by their numbers, each image encoded by itself where it is not stored."""
    if not tokens.missing:
        return tokens

    @lru_cache(maxsize=_KEPT_IMAGES)
    def one(number: int) -> NDArray[Any]:
        states: NDArray[Any] = tokens(np.array([number]))[0]
        return states

    return lambda numbers: np.stack([one(number) for number in numbers.tolist()])


def _itc(encoder: Encoder, states: NDArray[Any], text: str) -> NDArray[np.float32]:
    """(i,) ITC scores of images, by their vision states, with a text."""
    if not isinstance(encoder, ReadsTokens):
        raise UsageError(f"`rerank_model` {encoder.spec.checkpoint} keeps no vision states")
    images = encoder.encode_tokens(states, ["itc"])["itc"]
    words = encoder.encode_texts([text], ["itc"])["itc"]
    found: NDArray[np.float32] = np.einsum("iqd,d->iq", images, words[0, 0]).max(-1)
    return found
