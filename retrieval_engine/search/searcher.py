"""Queries in, ranked images or captions out, over one store and index as they stand.

query ──► encoder (or the store, for an image it knows) ──► index or exact search ──► hits
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.projected import ProjectedStore
from retrieval_engine.errors import DecodeError, FingerprintMismatch, ShapeError, UsageError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.index import Index, SavedIndex, open_index
from retrieval_engine.index.catalog import Catalog, GalleryCatalog
from retrieval_engine.index.fresh import fresh_index
from retrieval_engine.index.grouping import (
    Allowed,
    Items,
    Scores,
    late_interaction,
    merge_queries,
)
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.records import Modality
from retrieval_engine.search.caption_index import CaptionIndex
from retrieval_engine.search.distinct import distinct_top_k, first_of_each
from retrieval_engine.search.hits import Hit, Hits, hit_of
from retrieval_engine.search.pairing import (
    check_head,
    check_pair,
    open_query_encoder,
    through_head,
)
from retrieval_engine.search.queries import (
    Mix,
    Query,
    as_mix,
    combined,
    each_of,
    is_one,
    is_vector,
    is_words,
    name_of,
)
from retrieval_engine.search.rerank import rerank_images
from retrieval_engine.search.sieve import Sieve
from retrieval_engine.sources.decode import decode
from retrieval_engine.sources.given import image_bytes
from retrieval_engine.store import Store


class Searcher:
    """Searches the images and captions of a store.

    Scores are those of the checkpoint's contrastive head: the largest inner product over the
    vectors of an image. Equal scores come in the order in which the items came into the store.
    On a CPU a query has the same scores, to the bit, alone and among others: each is encoded by
    itself, and compared in a product of one shape.

    Args:
        store: where features are; None when the index alone is at hand, which answers words and
            images with images.
        index: an index over the store, or the path of one; None compares with every image. What
            came into the store after it is compared one by one, what is gone is left out.
        encoder: turns queries into vectors. By default the checkpoint that the store names is
            opened, in the store's dtype, when it is first needed.
        split: only the images and captions of this split; None is the index's, or all.
        feature: image feature that is compared where there is no index.
        device: for the encoder, see `open_encoder`.
        model: where the store's checkpoint is now, if it has moved.

    Attributes:
        notes: lines for people about what the answers are made from.
        opened: the encoder as it is without a head, once it is open.

    Raises:
        FingerprintMismatch: store, index and encoder are not of one encoder.
        IndexFailure: the index is over another store's or split's items.
        UsageError: neither a store nor an index.
    """

    def __init__(
        self,
        store: Store | None,
        index: SavedIndex | str | Path | None = None,
        encoder: Encoder | None = None,
        *,
        split: str | None = None,
        feature: str = "itc",
        device: str = "auto",
        model: str = "",
    ) -> None:
        if isinstance(index, str | Path):
            index = open_index(index)
        self.store = store
        self.feature = index.manifest.feature if index else feature
        self.split = index.manifest.split or None if index and split is None else split
        self.notes: tuple[str, ...] = ()
        self._device, self._model = device, model
        self.opened: Encoder | None = None
        self._encoder: Encoder | None = None
        self._guests: dict[str, Encoder] = {}
        self._saved = index
        self.index: Index
        self.catalog: Catalog
        if index:
            check_pair(index, store, self.split)
            now = fresh_index(index, store, self.split) if store else None
            self.index, self.catalog = now or index, now.catalog if now else index.catalog
            self.notes = now.notes if now else ()
            if self.split != split:
                self.notes = (f"{index.path} holds split {self.split!r} alone", *self.notes)
            self.spec: EncoderSpec = store.spec if store else index.manifest.encoder
        elif store:
            vectors = image_vectors(store, self.feature, split)
            self.index, self.catalog = vectors.exact(), GalleryCatalog(vectors.gallery)
            self.spec = store.spec
            self.notes = (f"no index: comparing with all {vectors.items:,} images of {store.path}",)
        else:
            raise UsageError("a search needs a store or an index; neither was given")
        if encoder:
            self._encoder = self._accept(encoder)

    @property
    def saved(self) -> SavedIndex | None:
        """The index that was opened, where there is one."""
        return self._saved

    @property
    def encoder(self) -> Encoder:
        """The encoder of the store, opened when it is first asked for.

        Raises:
            FingerprintMismatch: the checkpoint is another one than the store was made with.
            UsageError: the store's vectors were imported.
            EncoderError: it cannot be loaded.
        """
        if self._encoder is None:
            opened = open_query_encoder(self.spec, device=self._device, model=self._model)
            self._encoder = self._accept(opened)
        return self._encoder

    def _accept(self, encoder: Encoder) -> Encoder:
        seen, expected = encoder.spec.fingerprint, self.spec.fingerprint
        if seen != expected:
            raise FingerprintMismatch(
                f"a query vector of {encoder.spec.checkpoint}", seen=seen, expected=expected
            )
        self.opened = encoder
        encoder = through_head(encoder, self.store)
        check_head(encoder, self.store, self._saved, self.feature)
        return encoder

    def search(  # noqa: PLR0913 (what people ask for)
        self,
        queries: Any,
        k: int = 10,
        *,
        offset: int = 0,
        rerank: int = 0,
        rerank_model: str = "",
        captions: bool = False,
        allowed: Allowed | None = None,
        distinct: bool = False,
        min_match: float = 0.0,
    ) -> Any:
        """The k images that fit a query best, or each of several.

        Args:
            queries: words, an image in any form (see `sources.given.image_bytes`), a (d,) vector,
                a `Mix` or a mapping of queries to weights; or a list of them, or (n, d) vectors.
            k: at least 1; more than there are images gives them all.
            offset: leave out so many of the best, for the next page.
            rerank: how many of the nearest images the cross-encoder puts in a new order, at
                least `offset` and k together; 0 for none. Scores are then ITM + ITC. For words.
            rerank_model: another checkpoint for that, such as a real BLIP: it encodes only the
                images it is shown.
            captions: answer with the store's captions, found exactly, instead of its images.
            allowed: (items,) the items, by their numbers in `catalog`, that may be answers.
            distinct: leave out near-duplicates of a better hit, told by their pixels.
            min_match: leave out hits that match with less than this probability; see `Judge`. All
                of the k best may be; `Hits.best_match` then says how probable the best was.

        Returns:
            `Hits` of one query, or a list of them.

        Raises:
            UsageError: a number is out of range, a query is empty or cannot be asked, or the
                checkpoint has no matching head.
            SourceError: an image cannot be read or decoded.
            FeatureMissing: captions are wanted and the store has no features of any.
            ShapeError: a vector has another length than the store's.
        """
        one = is_one(queries)
        asked = [as_mix(query) for query in ([queries] if one else each_of(queries))]
        self._check(asked, k, offset, rerank, rerank_model)
        _check_sieve(asked, min_match, captions=captions, distinct=distinct)
        if captions:
            if rerank:
                raise UsageError("`rerank` orders images; `captions` answers with captions")
            answers = [self._search_captions(query, k, offset) for query in asked]
            return answers[0] if one else answers
        wanted = max(k + offset, rerank)
        vectors = [self.vectors(query) for query in asked]
        nearest = self._distinct if distinct else self._nearest
        found = nearest(vectors, wanted, allowed)
        if rerank:
            found = self._reranked(asked, found, rerank_model)
        answers = [
            Hits(
                self.hits(scores[: k + offset], items[: k + offset])[offset:],
                query=name_of(query),
                image=None if _is_no_image(query) else image_bytes(query),
            )
            for query, (scores, items) in zip(asked, found, strict=True)
        ]
        if min_match:
            for hits, vector, (_, items) in zip(answers, vectors, found, strict=True):
                shown = items[: k + offset]
                chances = self._sieve.matches(hits.query, vector[0], shown[shown >= 0][offset:])
                hits.keep_matches(chances.tolist(), min_match)
        return answers[0] if one else answers

    @cached_property
    def _sieve(self) -> Sieve:
        store = self._needed_store("`distinct` or `min_match`")
        return Sieve(self.catalog, store, lambda: self.encoder, self.split)

    def _distinct(
        self, vectors: Sequence[NDArray[np.float32]], k: int, allowed: Allowed | None
    ) -> list[tuple[Scores, Items]]:
        """As `_nearest`, without near-duplicates of better ones."""
        fetch, made = k, []
        for vector in vectors:
            while True:
                [(scores, items)] = self._nearest([vector], fetch, allowed)
                kept = self._sieve.apart(items, k)
                if len(kept) == k or (items < 0).any() or len(items) < fetch:
                    break
                fetch = 2 * fetch
            top = np.full(k, -np.inf, np.float32), np.full(k, -1, np.int64)
            top[0][: len(kept)], top[1][: len(kept)] = scores[kept], items[kept]
            made.append(top)
        return made

    search_text = search  # its name before 2026-11-26

    def similar(self, number: int, k: int = 10, allowed: Allowed | None = None) -> Hits:
        """The k images most like one of the store's, without itself and its copies.

        Args:
            number: of the item, in `catalog`.
            k: at least 1.
            allowed: see `search`.
        """
        self._check([], k, 0, 0, "")
        store = self._needed_store("searching for what is like an item")
        row = self.catalog.image_rows(store, np.array([number]))
        vectors = store.read(Modality.IMAGES, self.feature, row)[0].astype(np.float32)
        [(scores, items)] = self._nearest([vectors], k + 1, allowed)
        [own] = self.catalog.contents(np.array([number]))
        found = items[items >= 0]
        other = np.array([content != own for content in self.catalog.contents(found)], bool)
        hits = self.hits(scores[items >= 0][other][:k], found[other][:k])
        return Hits(hits, query=self.catalog.entries([number])[0].id)

    def _check(
        self, asked: Sequence[Query], k: int, offset: int, rerank: int, rerank_model: str
    ) -> None:
        if k < 1:
            raise UsageError(f"`k` is {k}; it must be at least 1")
        if offset < 0:
            raise UsageError(f"`offset` is {offset}; it must be 0 or more")
        for number, query in enumerate(asked, start=1):
            if isinstance(query, str) and not query.strip():
                raise UsageError(f"query {number} is empty", hint='ask for something: "a dog"')
            if isinstance(query, str) and not _is_unicode(query):
                raise UsageError(
                    f"query {number} is not UTF-8: {query!a}",
                    hint="set the terminal to UTF-8, or give the words in a file through stdin",
                )
            if rerank and not is_words(query):
                raise UsageError(
                    f"`rerank` matches words with pictures; query {number} is {name_of(query)!r}"
                )
        if rerank and rerank < k + offset:
            least = f"`k`, which is {k}" if not offset else f"`k` and `offset`, {k + offset}"
            raise UsageError(f"`rerank` is {rerank}; it must be at least {least}")
        if rerank_model and not rerank:
            raise UsageError("`rerank_model` needs `rerank`: how many images it shall look at")

    def _nearest(
        self, vectors: Sequence[NDArray[np.float32]], k: int, allowed: Allowed | None
    ) -> list[tuple[Scores, Items]]:
        """The best items of each query, by its (v, d) vectors."""
        single = [number for number, v in enumerate(vectors) if len(v) == 1]
        found: dict[int, tuple[Scores, Items]] = {}
        if single:
            queries = np.concatenate([vectors[number] for number in single])
            scores, items = distinct_top_k(self.index, self.catalog, queries, k, allowed)
            found = {number: (scores[i], items[i]) for i, number in enumerate(single)}
        return [
            found[number] if number in found else self._like(v, k, allowed)
            for number, v in enumerate(vectors)
        ]

    def _like(
        self, query: NDArray[np.float32], k: int, allowed: Allowed | None
    ) -> tuple[Scores, Items]:
        """The images most like one of several vectors (BLIP-2).

        The candidates of each of the query's vectors are ranked by late interaction, which reads
        them from the store.
        """
        store = self._needed_store("searching like images with several vectors each")
        k = min(k, self.index.items)
        fetch = min(max(4 * k, 64), self.index.items)
        scores, items = self.index.search(query, fetch, allowed)
        _, candidates = merge_queries(scores, items, scores.size)
        rows = self.catalog.image_rows(store, candidates)
        candidates, rows = candidates[rows >= 0], rows[rows >= 0]
        vectors = store.read(Modality.IMAGES, self.feature, rows)
        found = late_interaction(query, vectors)
        order = np.lexsort((candidates, -found))
        kept = first_of_each(self.catalog, candidates[order])[:k]
        best = order[[place for place, _ in kept]]
        return found[best], np.array([item for _, item in kept], np.int64)

    def _reranked(
        self, texts: Sequence[str], found: Sequence[tuple[Scores, Items]], model: str
    ) -> list[tuple[Scores, Items]]:
        encoder = self._guest(model) if model else self.encoder
        scores, items = rerank_images(
            texts,
            np.stack([scores for scores, _ in found]),
            np.stack([items for _, items in found]),
            store=self.store,
            catalog=self.catalog,
            encoder=encoder,
            is_guest=bool(model),
        )
        return list(zip(scores, items, strict=True))

    def _guest(self, name: str) -> Encoder:
        if name not in self._guests:
            self._guests[name] = open_encoder(name, device=self._device)
        return self._guests[name]

    def _search_captions(self, query: Query, k: int, offset: int) -> Hits:
        captions = self._captions
        most = min(k + offset, captions.index.items)
        scores, numbers = merge_queries(*captions.index.search(self.vectors(query), most), most)
        hits = [
            captions.hit(rank, score, number)
            for rank, (score, number) in enumerate(zip(scores, numbers, strict=True), start=1)
        ]
        image = None if _is_no_image(query) else image_bytes(query)
        return Hits(hits[offset:], query=name_of(query), image=image)

    def vectors(self, query: Query) -> NDArray[np.float32]:
        """(v, d) float32 unit vectors of one query; v is 32 for an image of BLIP-2, else 1."""
        query = as_mix(query)
        if isinstance(query, Mix):
            parts = [(self.vectors(part), weight) for part, weight in query.parts]
            return combined(parts, str(query))
        if is_vector(query):
            return self._given(np.asarray(query))
        if is_words(query):
            # By itself: in a batch padding and the shape of products round otherwise.
            text = self.encoder.encode_texts([query], [self.feature])[self.feature]
            return np.asarray(text[0], np.float32)
        return self._image(query)

    def _given(self, vector: NDArray[Any]) -> NDArray[np.float32]:
        """(1, d) of a vector of the side of captions, of any length and not yet projected."""
        if vector.dtype.kind not in "fiu" or not np.isfinite(vector).all() or not vector.any():
            raise ShapeError("the query vector holds NaN, infinity or only zeros")
        if isinstance(self.store, ProjectedStore):
            return self.store.saved.head.project(Modality.CAPTIONS, vector[None])[:, 0]
        if len(vector) != self.index.dim:
            raise ShapeError(
                f"the query has {len(vector)} dimensions, the images {self.index.dim}",
                hint="give vectors of the encoder that the store was made with",
            )
        length = np.linalg.norm(vector.astype(np.float64))
        unit: NDArray[np.float32] = (vector / length).astype(np.float32)[None]
        return unit

    def _image(self, image: Any) -> NDArray[np.float32]:
        """(v, d) vectors of an image; from the store, when it knows these very bytes."""
        data = image_bytes(image)
        known = self._stored(data)
        if known is not None:
            return known
        try:
            look = self.encoder.preprocessor
            pixels = look.pixels(decode(data, least_side=look.least_side))
        except DecodeError as error:
            what = str(image) if isinstance(image, str | Path) else "the query image"
            raise DecodeError(f"{what}: {error.message}") from error
        features = self.encoder.encode_images(pixels[None], [self.feature])
        vectors: NDArray[np.float32] = features[self.feature][0].astype(np.float32)
        return vectors

    def _stored(self, data: bytes) -> NDArray[np.float32] | None:
        if self.store is None:
            return None
        key = hashlib.sha256(data).hexdigest()
        rows = self.store.rows(Modality.IMAGES, [key], self.feature)
        if rows[0] < 0:
            return None
        vectors: NDArray[np.float32] = self.store.read(Modality.IMAGES, self.feature, rows)[0]
        return vectors.astype(np.float32)

    def hits(self, scores: Scores, items: Items) -> list[Hit]:
        """Hits from one ranked list of item numbers; -1 stands for none."""
        found = items >= 0
        entries = self.catalog.entries(items[found])
        return [
            hit_of(rank, score, entry)
            for rank, (score, entry) in enumerate(zip(scores[found], entries, strict=True), start=1)
        ]

    @cached_property
    def _captions(self) -> CaptionIndex:
        store = self._needed_store("searching captions")
        return CaptionIndex(store.gallery(self.split), self.feature)

    def _needed_store(self, what: str) -> Store:
        if self.store is None:
            raise UsageError(f"{what} needs the store; an index alone will not do")
        return self.store


def _check_sieve(
    asked: Sequence[Query], min_match: float, *, captions: bool, distinct: bool
) -> None:
    if not 0 <= min_match <= 1:
        raise UsageError(f"`min_match` is {min_match}, a probability, must lie between 0 and 1")
    if captions and (min_match or distinct):
        raise UsageError(
            "`captions` answers with captions; `distinct` and `min_match` are of images"
        )
    for number, query in enumerate(asked, start=1):
        if min_match and not is_words(query):
            raise UsageError(
                f"`min_match` matches words with pictures; query {number} is {name_of(query)!r}"
            )


def _is_no_image(query: Query) -> bool:
    return isinstance(query, Mix) or is_vector(query) or is_words(query)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, or bytes that were no UTF-8
        return False
    return True
