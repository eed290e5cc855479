"""Takes out of ranked images what shows a picture again, and judges which ones match the words."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.duplicates.candidates import unit
from retrieval_engine.duplicates.thumbnails import Thumbnails, proven
from retrieval_engine.encoding.projected import ProjectedStore
from retrieval_engine.index.catalog import Catalog
from retrieval_engine.index.grouping import Items, Scores
from retrieval_engine.models import Encoder
from retrieval_engine.records import Modality
from retrieval_engine.search.calibrate import CalibrationSettings, calibrate
from retrieval_engine.search.matching import (
    AT_ITS_WORD,
    Calibration,
    Evidence,
    Floats,
    Ints,
    MatchBy,
    has_matcher,
    load_calibration,
)
from retrieval_engine.search.nearest import NearestImages, filled
from retrieval_engine.store import Store

_PLAUSIBLE = 0.3  # cosine below which two images are surely not one, and are not looked at


class MatchJudge:
    """Probabilities that images of a store match words.

    By the calibration beside the store; without one, by ITM at its word where the model has a
    cross-encoder, else by ITC as the store's own captions calibrate it here and now.

    Args:
        store: whose images are asked about.
        encoder: its own.
        split: of the images at large.
    """

    def __init__(self, store: Store, encoder: Encoder, split: str | None = None) -> None:
        # Through a head the scores are others than those that were calibrated.
        made = None if isinstance(store, ProjectedStore) else load_calibration(store)
        if made is None and has_matcher(encoder):
            made = Calibration(by=MatchBy.ITM, fingerprint=store.fingerprint, fit=AT_ITS_WORD)
        self.calibration = made or calibrate(store, encoder, CalibrationSettings(split=split))
        self._evidence = Evidence(store, self.calibration.by, encoder, split)

    def __call__(
        self, text: str, vector: NDArray[np.float32], rows: Ints, uris: Sequence[str]
    ) -> Floats:
        """(n,) probabilities.

        Args:
            text: the query.
            vector: (d,) its vector.
            rows: (n,) of the images in the store.
            uris: (n,) where they are.
        """
        if not len(rows):
            return np.empty(0)
        pairs = np.stack([np.zeros(len(rows), np.int64), np.arange(len(rows))], axis=1)
        return self.calibration.fit(self._evidence.of([text], vector[None], pairs, (rows, uris)))


class Sieve:
    """Sieves what a search finds; what it has looked at it remembers.

    Args:
        catalog: the items.
        store: where their vectors are.
        encoder: gives the store's own, when it is needed.
        split: of the images at large.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        encoder: Callable[[], Encoder],
        split: str | None,
    ) -> None:
        self._catalog, self._store = catalog, store
        self._encoder, self._split = encoder, split
        self._pictures = Thumbnails()

    def search(
        self, nearest: NearestImages, queries: Sequence[NDArray[np.float32]], k: int
    ) -> list[tuple[Scores, Items]]:
        """As `nearest.search(queries, k)`, without near-duplicates of better ones."""
        made = []
        for query in queries:
            fetch = k
            while True:
                [(scores, items)] = nearest.search([query], fetch)
                kept = self.apart(items, k)
                if len(kept) == k or (items < 0).any() or len(items) < fetch:
                    break
                fetch *= 2
            made.append(filled(k, scores[kept], items[kept]))
        return made

    def apart(self, items: Items, k: int) -> list[int]:
        """Places of the first k items that are no near-duplicate of one before them.

        Args:
            items: (n,) numbers, best first; -1 is none.
            k: how many are wanted; nothing behind them is looked at.
        """
        numbers = items[items >= 0]
        uris = [entry.uri for entry in self._catalog.entries(numbers)]
        vectors = self._unit(numbers)
        kept: list[int] = []
        for place in range(len(numbers)):
            if len(kept) == k:
                break
            near = [other for other in kept if vectors[place] @ vectors[other] >= _PLAUSIBLE]
            pairs = [(uris[place], uris[other]) for other in near]
            if not proven(pairs, self._pictures)[0].any():
                kept.append(place)
        return kept

    def _unit(self, numbers: Items) -> NDArray[np.float32]:
        rows = self._catalog.image_rows(self._store, numbers)
        return unit(self._store.read(Modality.IMAGES, "itc", rows))

    @cached_property
    def _judge(self) -> MatchJudge:
        return MatchJudge(self._store, self._encoder(), self._split)

    def matches(self, text: str, vector: NDArray[np.float32], items: Items) -> NDArray[np.float64]:
        """(n,) the probability that each item matches a text with this (d,) vector."""
        rows = self._catalog.image_rows(self._store, items)
        uris = [entry.uri for entry in self._catalog.entries(items)]
        return self._judge(text, vector, rows, uris)
