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
from retrieval_engine.encoding.projected import ProjectedStore
from retrieval_engine.errors import EvaluationError, FingerprintMismatch, UsageError, one_line
from retrieval_engine.index.exact import ExactIndex
from retrieval_engine.metrics.calibration import (
    Logistic,
    Reliability,
    fit_logistic,
    reliability,
)
from retrieval_engine.models import Encoder, reopen_encoder
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Json, Modality
from retrieval_engine.search.pairing import IMPORTED
from retrieval_engine.store import Gallery, Store

FILE = "calibration.json"
_FORMAT = 1
_AT_LARGE = 512  # images that stand for all
_NEAR = 20  # a near mismatch is one of so many
_ABSTRACT = (
    *("theory", "budget", "syntax", "opinion", "theorem", "copyright", "probability", "doctrine"),
    *("tariff", "ethics", "logic", "policy", "metaphor", "warranty", "paragraph", "democracy"),
    *("mortgage", "hypothesis", "pronoun", "algorithm", "nostalgia", "jurisdiction", "decimal"),
    *("irony", "dividend", "ideology", "footnote", "integral", "subsidy", "rhetoric", "deadline"),
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """How a calibration is made.

    Attributes:
        split: only images of this split; None takes all.
        by: `itm` or `itc`; None is ITM where the model has it.
        captions: at most so many captions, one an image; half of them are held out.
        seed: draws them, and what they are mismatched with.
    """

    split: str | None = None
    by: MatchBy | None = None
    captions: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.captions < 20:
            raise UsageError(f"`captions` is {self.captions}, must be at least 20")


def calibrate(
    store: Store,
    encoder: Encoder | None = None,
    settings: CalibrationSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Calibration:
    """Probabilities of a match from the store's own pairs, and their reliability on held-out ones.

    Each caption is paired with its image, with an image drawn from all and with one drawn from the
    nearest; neither of the two has its bytes or an equal caption. Where there is an encoder, words
    that mean nothing one could see are paired with the image that is nearest to them.

    Args:
        store: with `itc` of images and captions.
        encoder: the store's; needed for ITM and for words without sense.
        settings: how.
        progress: told about pairs.

    Raises:
        EvaluationError: fewer than twenty images with captions.
        UsageError: ITM is asked for, and there is none.
    """
    settings, progress = settings or CalibrationSettings(), progress or Silent()
    able = has_matcher(encoder)
    if settings.by is MatchBy.ITM and not able:
        raise UsageError("`by='itm'`: the model has no cross-encoder", hint="use `by='itc'`")
    by = settings.by or (MatchBy.ITM if able else MatchBy.ITC)
    gallery = store.gallery(settings.split)
    rng = np.random.default_rng(settings.seed)
    captions = _drawn(gallery, settings.captions, rng)
    vectors = store.read(Modality.CAPTIONS, "itc", gallery.caption_rows[captions])[:, 0]
    vectors = vectors.astype(np.float32)
    texts = [gallery.caption_texts[caption] for caption in captions.tolist()]
    form = store.features(Modality.IMAGES)["itc"]
    index = ExactIndex.streaming(
        lambda size: gallery.image_blocks("itc", size), len(gallery), form.shape
    )
    near = index.search(vectors, min(3 * _NEAR, len(gallery)))[1]
    pairs, kind = _pairs(gallery, captions, near, rng)
    if encoder is not None:
        senseless = _senseless(texts, rng)
        theirs = encoder.encode_texts(senseless, ["itc"])["itc"][:, 0].astype(np.float32)
        top = index.search(theirs, 1)[1][:, 0]
        more = np.stack([len(texts) + np.arange(len(senseless)), top], axis=1)
        pairs, kind = np.concatenate([pairs, more]), np.append(kind, np.full(len(more), 3))
        texts, vectors = [*texts, *senseless], np.concatenate([vectors, theirs])
    progress.start("calibrating", len(pairs) if by is MatchBy.ITM else None)
    evidence = Evidence(store, by, encoder, settings.split)
    known = (gallery.image_rows, gallery.uris)
    features = evidence.of(texts, vectors, pairs, known, progress)
    progress.stop()
    match = kind == 0
    counts = np.bincount(kind)
    kinds = max(int(np.count_nonzero(counts[1:])), 1)
    share = np.where(np.arange(len(counts)) > 0, 1 / kinds, 1.0)
    weight = (counts[0] * share / counts.clip(1))[kind]  # true pairs as all others, each kind alike
    held = pairs[:, 0] % 2 == 1
    fit = fit_logistic(features[~held], match[~held], weight[~held])
    chance = fit(features[held])
    true = match[held]
    return Calibration(
        by=by,
        fingerprint=store.fingerprint,
        fit=fit,
        held_out=reliability(chance, true, weight[held]),
        kept=float((chance[true] >= 0.5).mean()),
        refused=float((chance[~true] < 0.5).mean()),
        n_pairs=int((~held).sum()),
    )


def _drawn(gallery: Gallery, count: int, rng: np.random.Generator) -> Ints:
    """A caption of each of some images, in a random order."""
    usable = np.flatnonzero(gallery.caption_rows >= 0)
    usable = usable[rng.permutation(len(usable))]
    _, first = np.unique(gallery.image_rows[gallery.caption_image[usable]], return_index=True)
    chosen: Ints = usable[np.sort(first)][:count]
    if len(chosen) < 20:
        raise EvaluationError(
            f"a calibration needs twenty images with captions, {gallery.store.path} has "
            f"{len(chosen)}",
            hint="encode a source that has captions",
        )
    return chosen


def _pairs(
    gallery: Gallery,
    captions: Ints,
    near: Ints,
    rng: np.random.Generator,
) -> tuple[Ints, Ints]:
    """(p, 2) places of captions with images, and (p,) 0 for a true pair, 1 near, 2 drawn."""
    said = [
        {_plain(gallery.caption_texts[j]) for j in gallery.captions_of(image)}
        for image in range(len(gallery))
    ]
    rows = gallery.image_rows
    pairs, kind = [], []
    for place, caption in enumerate(captions.tolist()):
        own = int(gallery.caption_image[caption])
        words = _plain(gallery.caption_texts[caption])

        def wrong(candidates: list[int], own: int = own, words: str = words) -> list[int]:
            return [i for i in candidates if rows[i] != rows[own] and words not in said[i]]

        pairs.append((place, own))
        kind.append(0)
        false = [wrong(near[place].tolist())[:_NEAR]]
        false.append(wrong(rng.integers(0, len(gallery), 8).tolist())[:1])
        for number, some in enumerate(false, start=1):
            if some:
                pairs.append((place, some[int(rng.integers(len(some)))]))
                kind.append(number)
    return np.array(pairs, np.int64), np.array(kind, np.int64)


def _senseless(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """A quarter as many texts as captions that show nothing: abstract ones, and stirred letters."""
    made = []
    for number in range(max(len(texts) // 4, 8)):
        if number % 4 < 2:
            a, b, c = rng.choice(_ABSTRACT, 3, replace=False)
            made.append([f"the {a} of {b}", f"{a} and {b}", f"a {a} about {b} {c}"][number % 3])
        else:
            words = texts[int(rng.integers(len(texts)))].lower().split()[:6]
            made.append(" ".join("".join(rng.permutation(list(word))) for word in words))
    return made


def _plain(text: str) -> str:
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
        found = Calibration(
            by=MatchBy(value["by"]),
            fingerprint=str(value["fingerprint"]),
            fit=Logistic(
                weights=tuple(float(w) for w in value["weights"]), bias=float(value["bias"])
            ),
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


def open_matcher(store: Store, *, device: str = "auto", model: str = "") -> Encoder | None:
    """The store's encoder; None where its vectors were imported.

    Raises:
        FingerprintMismatch: the checkpoint is another one than the store was made with.
        EncoderError: it cannot be loaded.
    """
    if store.spec.family == IMPORTED:
        return None
    return reopen_encoder(store.spec, device=device, model=model)


class Judge:
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
