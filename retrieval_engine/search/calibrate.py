"""Makes a calibration of matches from a store's own pairs of image and caption.

A logistic fit on true pairs against mismatched ones, half of them near, and on words without sense.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import EvaluationError, UsageError, accept_words
from retrieval_engine.index.exact import ExactIndex
from retrieval_engine.metrics.calibration import fit_logistic, reliability
from retrieval_engine.models import Encoder, reopen_encoder
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Modality
from retrieval_engine.search.matching import (
    Calibration,
    Evidence,
    Floats,
    Ints,
    MatchBy,
    has_matcher,
    same_words,
)
from retrieval_engine.search.pairing import IMPORTED
from retrieval_engine.store import Gallery, Store

_NEAR = 20  # a near mismatch is one of so many
_ABSTRACT = (
    *("theory", "budget", "syntax", "opinion", "theorem", "copyright", "probability", "doctrine"),
    *("tariff", "ethics", "logic", "policy", "metaphor", "warranty", "paragraph", "democracy"),
    *("mortgage", "hypothesis", "pronoun", "algorithm", "nostalgia", "jurisdiction", "decimal"),
    *("irony", "dividend", "ideology", "footnote", "integral", "subsidy", "rhetoric", "deadline"),
)


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
        accept_words(self, by=MatchBy)
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
    asked = _asked(gallery, encoder, settings)
    progress.start("calibrating", len(asked.pairs) if by is MatchBy.ITM else None)
    evidence = Evidence(store, by, encoder, settings.split)
    known = (gallery.image_rows, gallery.uris)
    features = evidence.of(asked.texts, asked.vectors, asked.pairs, known, progress)
    progress.stop()
    match, weight = asked.kind == 0, asked.weight
    held = asked.pairs[:, 0] % 2 == 1
    fit = fit_logistic(features[~held], match[~held], weight[~held])
    chance, true = fit(features[held]), match[held]
    return Calibration(
        by=by,
        fingerprint=store.fingerprint,
        fit=fit,
        held_out=reliability(chance, true, weight[held]),
        kept=float((chance[true] >= 0.5).mean()),
        refused=float((chance[~true] < 0.5).mean()),
        n_pairs=int((~held).sum()),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Questions:
    """What the model is asked about.

    Attributes:
        texts: t queries.
        vectors: (t, d) theirs.
        pairs: (p, 2) numbers of text and image.
        kind: (p,) 0 for a true pair, 1 near, 2 drawn, 3 for words without sense.
    """

    texts: list[str]
    vectors: NDArray[np.float32]
    pairs: Ints
    kind: Ints

    @property
    def weight(self) -> Floats:
        """(p,) true pairs weigh as much as all others, of which each kind weighs alike."""
        counts = np.bincount(self.kind)
        kinds = max(int(np.count_nonzero(counts[1:])), 1)
        share = np.where(np.arange(len(counts)) > 0, 1 / kinds, 1.0)
        each: Floats = (counts[0] * share / counts.clip(1))[self.kind]
        return each


def _asked(gallery: Gallery, encoder: Encoder | None, settings: CalibrationSettings) -> _Questions:
    store, rng = gallery.store, np.random.default_rng(settings.seed)
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
    return _Questions(texts=texts, vectors=vectors, pairs=pairs, kind=kind)


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

    @cache
    def said(image: int) -> set[str]:
        return {same_words(gallery.caption_texts[j]) for j in gallery.captions_of(image)}

    rows = gallery.image_rows
    pairs, kind = [], []
    for place, caption in enumerate(captions.tolist()):
        own = int(gallery.caption_image[caption])
        words = same_words(gallery.caption_texts[caption])

        def wrong(candidates: list[int], own: int = own, words: str = words) -> list[int]:
            return [i for i in candidates if rows[i] != rows[own] and words not in said(i)]

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


def open_matcher(store: Store, *, device: str = "auto", model: str = "") -> Encoder | None:
    """The store's encoder; None where its vectors were imported.

    Raises:
        FingerprintMismatch: the checkpoint is another one than the store was made with.
        EncoderError: it cannot be loaded.
    """
    if store.spec.family == IMPORTED:
        return None
    return reopen_encoder(store.spec, device=device, model=model)
