"""Recall after re-ranking with the cross-encoder, as BLIP and LAVIS evaluate.

For each query the k nearest candidates by ITC get `itm_logit[1] + itc`; the others stay behind
them in the order of their indices, as the authors' -100 puts them (`evaluation` in BLIP's
train_retrieval.py, `compute_sim_matrix` in LAVIS). `vlre-photo` and its kind add the likelihood of
the text where images are ordered; the report says so. A pair that both directions want is scored
once, and all pairs of an image together, so that its keys and values are computed once.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval_engine.encoding.image_tokens import ImageTokens
from retrieval_engine.encoding.model_pool import ModelPool
from retrieval_engine.errors import UsageError
from retrieval_engine.evaluate.matching_pool import MatcherFacts, scores_of_pool
from retrieval_engine.metrics.pair_scores import Ints
from retrieval_engine.metrics.ranks import NO_QUERY, Ranks
from retrieval_engine.metrics.recall import KS, RecallReport
from retrieval_engine.models import Encoder
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.store import Gallery

_BLOCK = 256  # queries whose similarities are held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankReport:
    """Recall after re-ranking, and what it took.

    Attributes:
        recall: in the form of the ITC-only report.
        k: candidates per query, clipped to the gallery.
        n_pairs: pairs scored.
        by_likelihood: whether images were ordered by the likelihood of the text, too; see
            `models.matcher.OrderingCrossEncoder`.
        n_encoded: images whose states were not stored and were encoded for this.
        seconds: of the scoring.
    """

    recall: RecallReport
    k: int
    n_pairs: int
    by_likelihood: bool
    n_encoded: int
    seconds: float


def rerank_recall(
    gallery: Gallery,
    encoder: Encoder | ModelPool[MatcherFacts],
    *,
    k: int,
    ks: tuple[int, ...] = KS,
    progress: Progress | None = None,
) -> RerankReport:
    """Recall@K of a gallery, the k nearest of each query re-ranked by ITM + ITC.

    Args:
        gallery: images and captions with `itc` features; with stored `tokens` no image is read.
        encoder: the one the store was made with, or a pool of devices that each hold its matcher
            and the gallery's captions.
        k: candidates per query; 128 (Flickr30k) and 256 (COCO) in the BLIP paper's code.
        ks: cutoffs.
        progress: told about every scored pair.

    Raises:
        UsageError: k is below 1, or the encoder has no cross-encoder.
        FingerprintMismatch: another encoder's store.
    """
    if k < 1:
        raise UsageError(f"`rerank` is {k}, must be at least 1")
    reader = encoder.facts.encoder if isinstance(encoder, ModelPool) else encoder
    spec = reader.spec
    gallery.store.check_fingerprint(f"encoder {spec.checkpoint}", spec.fingerprint)
    progress = progress or Silent()
    images = torch.from_numpy(gallery.images("itc"))  # (n, q, d)
    captions = torch.from_numpy(gallery.captions("itc"))[:, 0]  # (m, d)
    to_text = _candidates(images, captions, k, by_image=True)
    to_image = _candidates(images, captions, k, by_image=False)
    start = time.perf_counter()
    tokens = ImageTokens(gallery.store, gallery.image_rows, gallery.uris, reader)
    judge = _Judge(encoder, tokens, gallery.caption_texts, progress)
    (of_text, of_image), n_pairs = judge.scores(to_text, to_image)
    seconds = time.perf_counter() - start
    of_text += _itc(images, captions, to_text)
    of_image += _itc(images, captions, to_image)
    own = gallery.caption_image
    ranks = Ranks(
        image_to_text=_ranks_of_images(
            to_text, of_text, own, gallery.caption_rows, n_images=len(images)
        ),
        text_to_image=_ranks_of_captions(to_image[:, ::-1], of_image, own, gallery.image_rows),
    )
    return RerankReport(
        recall=RecallReport.of(ranks, own, ks=ks, fingerprint=spec.fingerprint),
        k=k,
        n_pairs=n_pairs,
        by_likelihood=judge.orders_images,
        n_encoded=tokens.encoded,
        seconds=seconds,
    )


class _Judge:
    """Match logits of the candidates of both directions.

    Args:
        encoder: or a pool of devices that each hold its matcher.
        tokens: of the images.
        texts: the captions.
        progress: told about every scored pair.
    """

    def __init__(
        self,
        encoder: Encoder | ModelPool[MatcherFacts],
        tokens: ImageTokens,
        texts: Sequence[str],
        progress: Progress,
    ) -> None:
        self._tokens, self._texts, self._progress = tokens, texts, progress
        self._model = encoder if isinstance(encoder, ModelPool) else encoder.matcher()
        facts = self._model.facts if isinstance(self._model, ModelPool) else self._model
        self.orders_images = facts.orders_images

    def scores(
        self, to_text: NDArray[np.int64], to_image: NDArray[np.int64]
    ) -> tuple[list[NDArray[np.float32]], int]:
        """(p,) logits of the (p, 2) pairs of either, and the number of pairs that were scored.

        A pair that both want is scored once, unless images are ordered by more than match logits.
        """
        if self.orders_images:
            self._progress.start("re-ranking", len(to_text) + len(to_image))
            found = [self._logits(to_text), self._logits(to_image, of_images=True)]
            self._progress.stop()
            return found, len(to_text) + len(to_image)
        both = np.concatenate([to_text, to_image])
        pairs, where = np.unique(both, axis=0, return_inverse=True)
        self._progress.start("re-ranking", len(pairs))
        logits = self._logits(pairs)[where.ravel()]
        self._progress.stop()
        return np.split(logits, [len(to_text)]), len(pairs)

    def _logits(self, pairs: NDArray[np.int64], *, of_images: bool = False) -> NDArray[np.float32]:
        model, progress = self._model, self._progress
        if isinstance(model, ModelPool):
            return scores_of_pool(model, self._tokens, pairs, progress, of_images=of_images)
        return model.score_pairs(
            self._tokens, self._texts, pairs, advance=progress.advance, of_images=of_images
        )


def _similarities(images: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """(i, q, d) and (m, d) -> (i, m) maximum over the q vectors of an image."""
    return (images @ captions.T).amax(dim=1)


def _candidates(
    images: torch.Tensor, captions: torch.Tensor, k: int, *, by_image: bool
) -> NDArray[np.int64]:
    """(p, 2) image and caption of the k best of each query; equal scores: lower index first."""
    found = []
    queries = images if by_image else captions
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        scores = _similarities(block, captions) if by_image else _similarities(images, block).T
        row, column = (x.numpy() for x in torch.nonzero(_best(scores, k), as_tuple=True))
        pair = (row + start, column) if by_image else (column, row + start)
        found.append(np.stack(pair, axis=1))
    return np.concatenate(found)


def _best(scores: torch.Tensor, k: int) -> torch.Tensor:
    """(b, c) whether each candidate is among the k best of its row; ties go to the lower index."""
    k = min(k, scores.shape[1])
    last = scores.topk(k, dim=1).values[:, -1:]
    above, level = scores > last, scores == last
    room = k - above.sum(dim=1, keepdim=True)
    return above | (level & (level.cumsum(dim=1) <= room))


def _itc(
    images: torch.Tensor, captions: torch.Tensor, pairs: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(p,) similarities of the pairs."""
    scores = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), 65_536):
        image, caption = torch.from_numpy(pairs[start : start + 65_536]).T
        both = (images[image] * captions[caption][:, None]).sum(-1).amax(-1)
        scores[start : start + 65_536] = both.numpy()
    return scores


def _ranks_of_images(
    pairs: NDArray[np.int64],
    scores: NDArray[np.float32],
    own: Ints,
    content: Ints,
    *,
    n_images: int,
) -> Ints:
    """(n,) rank of each image's best caption; pairs are (image, caption), sorted by image."""
    numbers = np.arange(n_images)
    ranks = np.full(n_images, NO_QUERY, dtype=np.int64)
    starts = np.searchsorted(pairs[:, 0], np.arange(n_images + 1))
    first, last = np.searchsorted(own, numbers), np.searchsorted(own, numbers, "right")
    for image in np.flatnonzero(last > first):
        span = slice(starts[image], starts[image + 1])
        mine = own[pairs[span, 1]] == image
        ranks[image] = _rank(pairs[span, 1], scores[span], mine, first[image], content)
    return ranks


def _ranks_of_captions(
    pairs: NDArray[np.int64], scores: NDArray[np.float32], own: Ints, content: Ints
) -> Ints:
    """(m,) rank of each caption's image; pairs are (caption, image), sorted by caption."""
    ranks = np.empty(len(own), dtype=np.int64)
    starts = np.searchsorted(pairs[:, 0], np.arange(len(own) + 1))
    for caption, image in enumerate(own):
        span = slice(starts[caption], starts[caption + 1])
        mine = pairs[span, 1] == image
        ranks[caption] = _rank(pairs[span, 1], scores[span], mine, image, content)
    return ranks


def _rank(
    candidates: NDArray[np.int64],
    scores: NDArray[np.float32],
    positive: NDArray[np.bool_],
    first_positive: int,
    content: Ints,
) -> int:
    """0-based rank of the best positive among re-ranked candidates, then all others by index.

    Candidates of the positive's own content (see `ranks.Contents`) do not stand in its way.
    """
    if not positive.any():
        # All that was not re-ranked has one score: lower index first.
        return int(len(candidates) + first_positive - (candidates < first_positive).sum())
    best = scores[positive].max()
    winner = candidates[positive][scores[positive] == best].min()
    others = ~positive & (content[candidates] != content[winner])
    ahead = (scores > best) | ((scores == best) & (candidates < winner))
    return int((ahead & others).sum())
