"""How probable it is that a hit matches its query: by ITM, or by ITC as the store calibrates it.

A cosine says which image is nearest, never whether any is near: those of nonsense are as high as
those of sense. The cross-encoder was trained to say it; where a model has none, a score is compared
with those that the same words have with images at large. Both become probabilities by a logistic
fit on the store's own true pairs against mismatched ones, half of them near.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.durable import replace_file
from retrieval_engine.encoding.image_tokens import ImageTokens
from retrieval_engine.errors import EvaluationError, FingerprintMismatch, UsageError, one_line
from retrieval_engine.metrics.calibration import Logistic, Reliability
from retrieval_engine.models import Encoder
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Json, Modality
from retrieval_engine.store import Store

FILE = "calibration.json"
_FORMAT = 1
_AT_LARGE = 512  # images that stand for all
_SURE = 1e-6  # a probability of ITM is kept this far from certain

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class MatchBy(StrEnum):
    """What a match is told by."""

    ITM = "itm"
    ITC = "itc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Turns what a model says of a pair into a probability.

    Attributes:
        by: what it reads.
        fingerprint: of the encoder it was made with.
        fit: of the features of `Evidence`.
        held_out: the reliability on pairs that it was not made with.
        kept: share of held-out true pairs at .5 and above.
        refused: share of held-out mismatched pairs below .5.
        n_pairs: pairs it was made with; 0 where ITM is taken at its word.
    """

    by: MatchBy
    fingerprint: str
    fit: Logistic
    held_out: Reliability | None = None
    kept: float = 0.0
    refused: float = 0.0
    n_pairs: int = 0

    def to_json(self) -> dict[str, Json]:
        """As JSON values."""
        return {
            "format": _FORMAT,
            "by": self.by.value,
            "fingerprint": self.fingerprint,
            "weights": list(self.fit.weights),
            "bias": self.fit.bias,
            "n_pairs": self.n_pairs,
            "held_out": {
                **(self.held_out.to_json() if self.held_out else {}),
                "kept": round(self.kept, 4),
                "refused": round(self.refused, 4),
            },
        }


AT_ITS_WORD = Logistic(weights=(1.0, 0.0), bias=0.0)


class Evidence:
    """What is known of pairs of words and images, as numbers to calibrate.

    By ITM: the log odds of its probability, and the ITC score. By ITC: the score, and how far it
    lies above those of the same words with images at large, in their standard deviations.

    Args:
        store: whose images are asked about.
        by: what is read.
        encoder: with a cross-encoder, for ITM.
        split: whose images are the images at large.
    """

    def __init__(
        self, store: Store, by: MatchBy, encoder: Encoder | None, split: str | None = None
    ) -> None:
        self._store, self._by, self._encoder, self._split = store, by, encoder, split

    def _vectors(self, rows: Ints) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._store.read(Modality.IMAGES, "itc", rows)
        return found.astype(np.float32)

    @cached_property
    def _at_large(self) -> NDArray[np.float32]:
        rows = self._store.gallery(self._split).image_rows
        count = min(_AT_LARGE, len(rows))
        return self._vectors(np.random.default_rng(0).choice(rows, count, replace=False))

    def of(
        self,
        texts: Sequence[str],
        vectors: NDArray[np.float32],
        pairs: Ints,
        images: tuple[Ints, Sequence[str]],
        progress: Progress | None = None,
    ) -> Floats:
        """(p, 2) features.

        Args:
            texts: t queries.
            vectors: (t, d) theirs.
            pairs: (p, 2) numbers of text and image.
            images: (n,) rows of the images in the store, and their uris.
            progress: told about pairs.
        """
        progress = progress or Silent()
        numbers, place = np.unique(pairs[:, 1], return_inverse=True)
        rows = images[0][numbers]
        known = self._vectors(rows)
        itc = np.einsum("pqd,pd->pq", known[place], vectors[pairs[:, 0]]).max(-1)
        if self._by is MatchBy.ITC:
            large = np.einsum("nqd,td->tnq", self._at_large, vectors).max(-1)
            mean, spread = large.mean(axis=1), large.std(axis=1).clip(1e-6)
            above = (itc - mean[pairs[:, 0]]) / spread[pairs[:, 0]]
            return np.stack([itc, above], axis=1).astype(np.float64)
        assert self._encoder is not None
        uris = [images[1][number] for number in numbers.tolist()]
        tokens = ImageTokens(self._store, rows, uris, self._encoder)
        asked = np.stack([place.ravel(), pairs[:, 0]], axis=1)
        chance = self._encoder.matcher().score_pairs(
            tokens, texts, asked, as_probability=True, advance=progress.advance
        )
        chance = chance.astype(np.float64).clip(_SURE, 1 - _SURE)
        return np.stack([np.log(chance / (1 - chance)), itc], axis=1)


def has_matcher(encoder: Encoder | None) -> bool:
    """Whether an encoder has a cross-encoder."""
    if encoder is None or "tokens" not in encoder.features(Modality.IMAGES):
        return False
    try:
        encoder.matcher()
    except UsageError:
        return False
    return True


def same_words(text: str) -> str:
    """A caption as it is compared with others: case, spaces and a full stop make no difference."""
    return " ".join(text.lower().split()).rstrip(" .")


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration, whole or not at all.

    Raises:
        EvaluationError: the file cannot be written.
    """
    try:
        replace_file(path, (json.dumps(calibration.to_json(), indent=1) + "\n").encode())
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {one_line(error)}") from error


def load_calibration(store: Store) -> Calibration | None:
    """The calibration beside a store's features, or None.

    Raises:
        EvaluationError: the file is damaged.
        FingerprintMismatch: it was made with another encoder.
    """
    path = store.path / FILE
    try:
        value: Any = json.loads(path.read_text("utf-8"))
        if value["format"] != _FORMAT:
            raise ValueError(f"its format is {value['format']!r}, this version reads {_FORMAT}")
        numbers = [float(number) for number in (*value["weights"], value["bias"])]
        if len(numbers) != 3 or not np.isfinite(numbers).all():
            raise ValueError(f"weights and bias are {numbers}; three finite numbers are needed")
        found = Calibration(
            by=MatchBy(value["by"]),
            fingerprint=str(value["fingerprint"]),
            fit=Logistic(weights=tuple(numbers[:2]), bias=numbers[2]),
            n_pairs=int(value["n_pairs"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"cannot read {path}: {one_line(error)}", hint="make it again: `calibrate(store=DIR)`"
        ) from error
    if found.fingerprint != store.fingerprint:
        raise FingerprintMismatch(
            f"calibration {path}",
            seen=found.fingerprint,
            expected=store.fingerprint,
            hint="make it again: `calibrate(store=DIR)`",
        )
    return found
