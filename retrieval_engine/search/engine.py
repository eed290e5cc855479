"""Words or an image in, ranked images or captions out.

    query ──► encoder (or the store, for an image it knows) ──► index or exact search ──► hits

Each step is a method, so that what comes later (re-ranking, filters) goes between two of them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import (
    DecodeError,
    FeatureMissing,
    FingerprintMismatch,
    UsageError,
)
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.index import ExactIndex, Index, SavedIndex, open_index
from retrieval_engine.index.catalog import Catalog, GalleryCatalog
from retrieval_engine.index.exact import Block
from retrieval_engine.index.grouping import Items, Scores, late_interaction, merge_queries
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.records import Caption, Modality
from retrieval_engine.search.distinct import distinct_top_k, first_of_each
from retrieval_engine.search.hits import Hit, hit_of
from retrieval_engine.search.pairing import check_head, check_pair, open_query_encoder
from retrieval_engine.search.rerank import rerank_images
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Gallery, Store

_TEXTS_PER_BATCH = 256


class SearchEngine:
    """Searches the images and captions of a store.

    Scores are those of the checkpoint's contrastive head: the largest inner product over the
    vectors of an image. Equal scores come in the order in which the items came into the store.

    Args:
        store: where features are; None when the index alone is at hand, which answers words and
            images with images.
        index: an index over the store, or the path of one; None compares with every image.
        encoder: turns queries into vectors. By default the checkpoint that the store names is
            opened, in the store's dtype, when it is first needed.
        split: only the images and captions of this split; None is the index's, or all.
        device: for the encoder, see `open_encoder`.
        model: where the store's checkpoint is now, if it has moved.

    Attributes:
        notes: lines for people about what the answers are made from.

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
        self._encoder: Encoder | None = None
        self._guests: dict[str, Encoder] = {}
        self.index: Index
        self.catalog: Catalog
        if index:
            self.notes = check_pair(index, store, self.split)
            if self.split != split:
                self.notes = (f"{index.path} holds split {self.split!r} alone", *self.notes)
            self.index, self.catalog = index, index.catalog
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
    def encoder(self) -> Encoder:
        """The encoder of the store, opened when it is first asked for.

        Raises:
            FingerprintMismatch: the checkpoint is another one than the store was made with.
            UsageError: the store's vectors were imported.
            EncoderError: it cannot be loaded.
        """
        if self._encoder is None:
            opened = open_query_encoder(
                self.spec, self.store, device=self._device, model=self._model
            )
            self._encoder = self._accept(opened)
        return self._encoder

    def _accept(self, encoder: Encoder) -> Encoder:
        seen, expected = encoder.spec.fingerprint, self.spec.fingerprint
        if seen != expected:
            raise FingerprintMismatch(
                f"a query vector of {encoder.spec.checkpoint}", seen=seen, expected=expected
            )
        check_head(encoder, self.store, self.index, self.feature)
        return encoder

    def search_text(self, text: str, k: int = 10) -> list[Hit]:
        """The k images that fit the words best; see `search_texts`."""
        return self.search_texts([text], k)[0]

    def search_texts(
        self, texts: Sequence[str], k: int = 10, *, rerank: int = 0, rerank_model: str = ""
    ) -> list[list[Hit]]:
        """The k images that fit each of several sentences best.

        Args:
            texts: as people wrote them; they are encoded and searched in batches.
            k: at least 1; more than there are images gives them all.
            rerank: how many of the nearest images the cross-encoder puts in a new order, at
                least k; 0 for none. Scores are then ITM + ITC.
            rerank_model: another checkpoint for that, such as a real BLIP: it encodes only the
                images it is shown.

        Raises:
            UsageError: k is below 1, rerank is below k, a text is empty, or the checkpoint has
                no matching head.
        """
        self._check_k(k)
        if blank := [i for i, text in enumerate(texts) if not text.strip()]:
            raise UsageError(f"query {blank[0] + 1} is empty", hint='ask for something: "a dog"')
        if broken := [i for i, text in enumerate(texts) if not _is_unicode(text)]:
            raise UsageError(
                f"query {broken[0] + 1} is not UTF-8: {texts[broken[0]]!a}",
                hint="set the terminal to UTF-8, or give the words in a file through stdin",
            )
        if rerank and rerank < k:
            raise UsageError(f"`rerank` is {rerank}; it must be at least `k`, which is {k}")
        if rerank_model and not rerank:
            raise UsageError("`rerank_model` needs `rerank`: how many images it shall look at")
        scores, items = distinct_top_k(
            self.index, self.catalog, self.encode_texts(texts), max(k, rerank)
        )
        if rerank:
            scores, items = rerank_images(
                texts,
                scores,
                items,
                store=self.store,
                catalog=self.catalog,
                encoder=self._guest(rerank_model) if rerank_model else self.encoder,
                is_guest=bool(rerank_model),
            )
            scores, items = scores[:, :k], items[:, :k]
        return [self.hits(s, i) for s, i in zip(scores, items, strict=True)]

    def _guest(self, name: str) -> Encoder:
        if name not in self._guests:
            self._guests[name] = open_encoder(name, device=self._device)
        return self._guests[name]

    def search_image(
        self, image: bytes | str | Path, k: int = 10, captions: bool = False
    ) -> list[Hit]:
        """The k images most like an image, or the k captions that fit it best.

        With several vectors an image (BLIP-2) the candidates of each of the query's vectors are
        ranked by late interaction, which reads them from the store.

        Args:
            image: a file's path, an item's uri, or the bytes of a file.
            k: at least 1.
            captions: search the store's captions, exactly, instead of its images.

        Raises:
            SourceError: the image cannot be read or decoded.
            FeatureMissing: captions are wanted and the store has no features of any.
            UsageError: k is below 1, or a store is needed and there is none: for captions, and
                for several vectors an image.
        """
        self._check_k(k)
        if captions:
            return self._search_captions(image, k)
        query = self.encode_image(image)
        if len(query) == 1:
            scores, items = distinct_top_k(self.index, self.catalog, query, k)
            return self.hits(scores[0], items[0])
        store = self._needed_store("searching like images with several vectors each")
        k = min(k, self.index.items)
        scores, items = self.index.search(query, min(max(4 * k, 64), self.index.items))
        _, candidates = merge_queries(scores, items, scores.size)
        rows = self.catalog.image_rows(store, candidates)
        candidates, rows = candidates[rows >= 0], rows[rows >= 0]
        vectors = store.read(Modality.IMAGES, self.feature, rows)
        found = late_interaction(query, vectors)
        order = np.lexsort((candidates, -found))
        kept = first_of_each(self.catalog, candidates[order])[:k]
        best = order[[place for place, _ in kept]]
        return self.hits(found[best], np.array([item for _, item in kept], np.int64))

    def _search_captions(self, image: bytes | str | Path, k: int) -> list[Hit]:
        captions = self._captions
        k = min(k, captions.index.items)
        scores, numbers = merge_queries(*captions.index.search(self.encode_image(image), k), k)
        return [
            captions.hit(rank, score, number)
            for rank, (score, number) in enumerate(zip(scores, numbers, strict=True), start=1)
        ]

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) float32 query vectors of sentences."""
        vectors = [
            self.encoder.encode_texts(texts[i : i + _TEXTS_PER_BATCH], [self.feature])[self.feature]
            for i in range(0, len(texts), _TEXTS_PER_BATCH)
        ]
        return np.concatenate(vectors)[:, 0].astype(np.float32)  # (n, 1, d) -> (n, d)

    def encode_image(self, image: bytes | str | Path) -> NDArray[np.float32]:
        """(q, d) float32 vectors of an image; from the store, when it knows these very bytes."""
        data = image if isinstance(image, bytes) else read_bytes(str(image))
        known = self._stored(data)
        if known is not None:
            return known
        try:
            look = self.encoder.preprocessor
            pixels = look.pixels(decode(data, least_side=look.least_side))
        except DecodeError as error:
            what = "the query image" if isinstance(image, bytes) else str(image)
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
    def _captions(self) -> "_CaptionIndex":
        store = self._needed_store("searching captions")
        return _CaptionIndex(store.gallery(self.split), self.feature)

    def _needed_store(self, what: str) -> Store:
        if self.store is None:
            raise UsageError(f"{what} needs the store; an index alone will not do")
        return self.store

    @staticmethod
    def _check_k(k: int) -> None:
        if k < 1:
            raise UsageError(f"`k` is {k}; it must be at least 1")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, or bytes that were no UTF-8
        return False
    return True


class _CaptionIndex:
    """The captions of a gallery that have features, searched exactly."""

    def __init__(self, gallery: Gallery, feature: str) -> None:
        self._gallery = gallery
        self._items = GalleryCatalog(gallery)
        self._numbers = np.flatnonzero(gallery.caption_rows >= 0)
        store = gallery.store
        forms = store.features(Modality.CAPTIONS)
        if feature not in forms or not len(self._numbers):
            raise FeatureMissing(
                f"{store.path} holds no {feature} of captions",
                hint="encode a source that has captions",
            )
        rows = gallery.caption_rows[self._numbers]

        def blocks(size: int) -> Iterator[Block]:
            for start in range(0, len(rows), size):
                yield start, store.read(Modality.CAPTIONS, feature, rows[start : start + size])

        self.index = ExactIndex.streaming(blocks, len(rows), forms[feature].shape)

    def hit(self, rank: int, score: float, number: int) -> Hit:
        """The hit for a caption, by its number among those that have features."""
        at = int(self._numbers[number])
        caption = Caption(id=self._gallery.caption_ids[at], text=self._gallery.caption_texts[at])
        entry = self._items.entries([int(self._gallery.caption_image[at])])[0]
        return hit_of(rank, score, entry, caption)
