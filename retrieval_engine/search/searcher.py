"""Queries in, ranked images or captions out, over one store and index as they stand.

query ──► encoder (or the store, for an image it knows) ──► index or exact search ──► hits
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import UsageError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.index import Index, SavedIndex, open_index
from retrieval_engine.index.catalog import Catalog, GalleryCatalog
from retrieval_engine.index.fresh import fresh_index
from retrieval_engine.index.grouping import Items, Scores
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.records import Modality
from retrieval_engine.search.caption_index import CaptionIndex
from retrieval_engine.search.checks import check_asked, check_kinds, check_numbers
from retrieval_engine.search.hits import Hit, Hits, hit_of
from retrieval_engine.search.nearest import NearestImages
from retrieval_engine.search.pairing import check_pair
from retrieval_engine.search.queries import Query, answer_to, as_mix, each_of, is_one
from retrieval_engine.search.query_encoder import QueryEncoder
from retrieval_engine.search.rerank import rerank_images
from retrieval_engine.search.sieve import Sieve
from retrieval_engine.store import Store
from retrieval_engine.store.filters import ItemFilter


class Searcher:
    """Searches the images and captions of a store.

    Scores are those of the checkpoint's contrastive head: the largest inner product over the
    vectors of an image. Equal scores come in the order in which the items came into the store.
    On a CPU a query has the same scores, to the bit, alone and among others: each is encoded by
    itself, and compared in a product of one shape.

    Args:
        store: where features are; None when the index alone is at hand, which answers words and
            images with images.
        index: an index over the store, or its path; None compares with every image. What came
            into the store after it is compared one by one, what is gone is left out.
        encoder: turns queries into vectors; by default the checkpoint that the store names, in
            the store's dtype, opened when it is first needed.
        split: only the images and captions of this split; None is the index's, or all.
        sources: only the images and captions of these sources, by name; none for all.
        device: for the encoder, see `open_encoder`.
        model: where the store's checkpoint is now, if it has moved.

    Attributes:
        notes: lines for people about what the answers are made from.
        saved: the index that was opened, where there is one.
        allowed: (items,) the items of `sources`, by their numbers in `catalog`; None for all.

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
        sources: Collection[str] = (),
        device: str = "auto",
        model: str = "",
    ) -> None:
        if isinstance(index, str | Path):
            index = open_index(index)
        self.store = store
        self.feature = index.manifest.feature if index else "itc"
        self.split = index.manifest.split or None if index and split is None else split
        self.notes: tuple[str, ...] = ()
        self.saved = index
        self._device, self._sources = device, sources
        self._guests: dict[str, Encoder] = {}
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
        of_sources = self.catalog.of_sources(sources) if sources else None
        self.allowed = None if of_sources is None or of_sources.all() else of_sources
        self._queries = QueryEncoder(
            store,
            index,
            self.spec,
            feature=self.feature,
            dim=self.index.dim,
            device=device,
            model=model,
        )
        if encoder:
            self._queries.accept(encoder)

    @property
    def encoder(self) -> Encoder:
        """What turns queries into vectors; see `QueryEncoder.encoder`."""
        return self._queries.encoder

    @property
    def opened(self) -> Encoder | None:
        """The encoder as it is without a head, once it is open."""
        return self._queries.opened

    def vectors(self, query: Query) -> NDArray[np.float32]:
        """(v, d) float32 unit vectors of one query; v is 32 for an image of BLIP-2, else 1."""
        return self._queries.vectors(query)

    def search(  # noqa: PLR0913 (what people ask for)
        self,
        queries: Any,
        k: int = 10,
        *,
        offset: int = 0,
        rerank: int = 0,
        rerank_model: str = "",
        captions: bool = False,
        distinct: bool = False,
        min_match: float = 0.0,
        where: str = "",
    ) -> Any:
        """The k images that fit a query best, or each of several.

        Args:
            queries: words, an image in any form (see `sources.image_forms.image_bytes`), a (d,)
                vector, a `Mix` or a mapping of queries to weights; or a list of them, or (n, d)
                vectors.
            k: at least 1; more than there are images gives them all.
            offset: leave out so many of the best, for the next page.
            rerank: how many of the nearest images the cross-encoder puts in a new order, at
                least `offset` and k together; 0 for none. Scores are then ITM + ITC. For words.
            rerank_model: another checkpoint for that, which encodes only what it is shown.
            captions: answer with the store's captions, found exactly, instead of its images.
            distinct: leave out near-duplicates of a better hit, told by their pixels.
            min_match: leave out hits that match with less than this probability; see `MatchJudge`.
                All of the k best may be; `Hits.best_match` says how probable the best was.
            where: only items of which this condition holds, see `store.filters`; `Hits.note` says
                which part of it leaves none.

        Returns:
            `Hits` of one query, or a list of them.

        Raises:
            UsageError: a number, a query, `where` or the checkpoint is not fit for what is asked.
            SourceError: an image cannot be read or decoded.
            FeatureMissing: captions are wanted and the store has no features of any.
            ShapeError: a vector has another length than the store's.
        """
        one = is_one(queries)
        asked = [as_mix(query) for query in ([queries] if one else each_of(queries))]
        check_numbers(k, offset, rerank, rerank_model)
        check_kinds(captions=captions, rerank=rerank, distinct=distinct, min_match=min_match)
        check_asked(asked, rerank=rerank, min_match=min_match)
        if captions:
            answers = [self._search_captions(query, k, offset, where) for query in asked]
            return answers[0] if one else answers
        most, wanted = k + offset, max(k + offset, rerank)
        nearest = self._filtered(where) if where else self._nearest
        vectors = [self.vectors(query) for query in asked]
        if distinct:
            found = self._sieve.search(nearest, vectors, wanted)
        else:
            found = nearest.search(vectors, wanted)
        if rerank:
            found = self._reranked(asked, found, rerank_model)
        answers = self._answers(asked, vectors, found, slice(offset, most), min_match, where)
        return answers[0] if one else answers

    def similar(self, number: int, k: int = 10, where: str = "") -> Hits:
        """The k images most like the one of this number, without itself and its copies."""
        check_numbers(k)
        store = self._needed_store("searching for what is like an item")
        row = self.catalog.image_rows(store, np.array([number]))
        vectors = store.read(Modality.IMAGES, self.feature, row)[0].astype(np.float32)
        nearest = self._filtered(where) if where else self._nearest
        [(scores, items)] = nearest.search([vectors], k + 1)
        [own] = self.catalog.contents(np.array([number]))
        found = items[items >= 0]
        other = np.array([content != own for content in self.catalog.contents(found)], bool)
        hits = self.hits(scores[items >= 0][other][:k], found[other][:k])
        return Hits(hits, query=self.catalog.entries([number])[0].id)

    def _answers(
        self,
        asked: Sequence[Query],
        vectors: Sequence[NDArray[np.float32]],
        found: Sequence[tuple[Scores, Items]],
        page: slice,
        min_match: float,
        where: str,
    ) -> list[Hits]:
        """A page of what was found for each query."""
        answers = []
        for query, vector, (scores, items) in zip(asked, vectors, found, strict=True):
            hits = answer_to(query, self.hits(scores[: page.stop], items[: page.stop])[page])
            if where and not hits:
                hits.note = self.filter.emptied_by(where)
            if min_match:
                chances = self._sieve.matches(hits.query, vector[0], items[items >= 0][page])
                hits.keep_matches(chances.tolist(), min_match)
            answers.append(hits)
        return answers

    def _reranked(
        self, texts: Sequence[str], found: Sequence[tuple[Scores, Items]], model: str
    ) -> list[tuple[Scores, Items]]:
        ranked = rerank_images(
            texts,
            np.stack([scores for scores, _ in found]),
            np.stack([items for _, items in found]),
            store=self.store,
            catalog=self.catalog,
            encoder=self._guest(model) if model else self.encoder,
            is_guest=bool(model),
        )
        return list(zip(*ranked, strict=True))

    def _guest(self, name: str) -> Encoder:
        if name not in self._guests:
            self._guests[name] = open_encoder(name, device=self._device)
        return self._guests[name]

    def _search_captions(self, query: Query, k: int, offset: int, where: str) -> Hits:
        hits = self._captions.search(self.vectors(query), k + offset, where)
        found = answer_to(query, hits[offset:])
        found.note = self._captions.filter.emptied_by(where) if where and not hits else ""
        return found

    def hits(self, scores: Scores, items: Items) -> list[Hit]:
        """Hits from one ranked list of item numbers; -1 stands for none."""
        found = items >= 0
        entries = self.catalog.entries(items[found])
        return [
            hit_of(rank, score, entry)
            for rank, (score, entry) in enumerate(zip(scores[found], entries, strict=True), start=1)
        ]

    @cached_property
    def numbers(self) -> Items:
        """(n,) the items that may be answers, by their numbers in `catalog`."""
        every = np.ones(len(self.catalog), bool)
        return np.flatnonzero(every if self.allowed is None else self.allowed)

    @cached_property
    def filter(self) -> ItemFilter:
        """Filters over the items that may be answers."""
        return ItemFilter(self.catalog.table(), self.allowed)

    def _filtered(self, where: str) -> NearestImages:
        return replace(self._nearest, allowed=self.filter.mask(where))

    @cached_property
    def _nearest(self) -> NearestImages:
        return NearestImages(
            index=self.index,
            catalog=self.catalog,
            store=self.store,
            feature=self.feature,
            allowed=self.allowed,
        )

    @cached_property
    def _sieve(self) -> Sieve:
        store = self._needed_store("`distinct` or `min_match`")
        return Sieve(self.catalog, store, lambda: self.encoder, self.split)

    @cached_property
    def _captions(self) -> CaptionIndex:
        store = self._needed_store("searching captions")
        return CaptionIndex(store.gallery(self.split), self.feature, self._sources)

    def _needed_store(self, what: str) -> Store:
        if self.store is None:
            raise UsageError(f"{what} needs the store; an index alone will not do")
        return self.store
