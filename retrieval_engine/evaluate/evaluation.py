"""One evaluation of a store from end to end: recall, its intervals, leaks, certificate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_engine.encoding.model_pool import ModelPool
from retrieval_engine.encoding.places import placed
from retrieval_engine.encoding.projected import ProjectedStore, leak_free
from retrieval_engine.errors import UsageError, accept_words
from retrieval_engine.evaluate.certificate import ITC, Protocol, certificate
from retrieval_engine.evaluate.leaks import (
    LeakReport,
    find_leaks,
    known_training_records,
    of_head,
)
from retrieval_engine.evaluate.matching_pool import MatcherFacts, opener_of
from retrieval_engine.evaluate.positives import (
    ExtendedRecall,
    extended_recall,
    read_positives,
)
from retrieval_engine.evaluate.reranked import RerankReport, rerank_recall
from retrieval_engine.evaluate.store_recall import gallery_recall
from retrieval_engine.heads import SavedHead
from retrieval_engine.metrics.bootstrap import Bootstrap
from retrieval_engine.metrics.intervals import RecallIntervals, recall_intervals
from retrieval_engine.metrics.race import Ties
from retrieval_engine.metrics.recall import KS, RecallReport
from retrieval_engine.models import Encoder, reopen_encoder
from retrieval_engine.progress import Progress
from retrieval_engine.records import Json, data_frame
from retrieval_engine.store import Gallery, Store
from retrieval_engine.store.gallery import shared_strings


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallSettings:
    """Settings of a recall evaluation.

    Attributes:
        split: only items of this split; None takes all.
        source: only items of the source of this name; empty takes all.
        ks: cutoffs.
        ties: see `Ties`.
        device: where products and, for re-ranking, the model run.
        rerank: candidates per query that the cross-encoder re-ranks as well; 0 for none.
        model: where the store's checkpoint is now, if it has moved.
        devices: a process and a model for re-ranking on each of several; see `open_devices`.
        on: a Ray cluster whose devices those are; see `open_devices`.
        trained_on: records of what the model was trained on, beside those that are found.
        keep_trained: with a head, leave in the gallery what it was trained on.
        positives: files that say what matches besides; see `read_positives`.
        bootstrap: how intervals are drawn.
    """

    split: str | None = None
    source: str = ""
    ks: tuple[int, ...] = KS
    ties: Ties = Ties.LOWER_INDEX
    device: str = "auto"
    rerank: int = 0
    model: str = ""
    devices: str = ""
    on: str = ""
    trained_on: tuple[Path, ...] = ()
    keep_trained: bool = False
    positives: tuple[Path, ...] = ()
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        accept_words(self, ties=Ties)
        if self.rerank and self.ties is not Ties.LOWER_INDEX:
            raise UsageError(f"re-ranked figures know ties by lower index only, not {self.ties}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Recall of a store by each protocol, with intervals and leaks.

    Attributes:
        gallery: what was evaluated.
        results: each protocol's figures; ITC alone first, then re-ranked if that was asked for.
        leaks: what gallery and training share.
        bootstrap: how intervals are drawn.
        head: the head the vectors passed through, and what was left out for it; None for none.
        extended: figures of ITC alone under extended ground truth, if that was asked for.
    """

    gallery: Gallery
    results: Sequence[tuple[Protocol, RecallReport]]
    leaks: LeakReport
    bootstrap: Bootstrap
    head: Mapping[str, Json] | None = None
    extended: ExtendedRecall | None = None

    @property
    def report(self) -> RecallReport:
        """The ITC-only figures."""
        return self.results[0][1]

    def intervals(self, report: RecallReport) -> RecallIntervals | None:
        """Where a report's figures may lie."""
        return recall_intervals(report, self.bootstrap)

    def certificate(self) -> dict[str, Json]:
        """All that a reviewer needs, as JSON values."""
        made = certificate(self.gallery, self.results, self.leaks, bootstrap=self.bootstrap)
        return made | self._extended() | self._head()

    def _extended(self) -> dict[str, Json]:
        return {"extended": self.extended.to_json()} if self.extended else {}

    def _head(self) -> dict[str, Json]:
        return {"head": dict(self.head)} if self.head else {}

    def to_json(self) -> dict[str, Json]:
        """The figures as JSON values; re-ranked ones in the same form under `reranked`."""
        value = self._figures(self.report)
        for protocol, report in self.results[1:]:
            value["reranked"] = self._figures(report) | {
                "k": protocol.k,
                "seconds": round(protocol.seconds, 3),
            }
        return value | {"leaks": self.leaks.to_json()} | self._extended() | self._head()

    def to_pandas(self) -> Any:
        """A row for each protocol and direction: `R@1`, … in percent, and their 95 % intervals.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return data_frame(self._rows())

    def _repr_html_(self) -> str:
        rows = self._rows()
        lines = [list(rows[0]), *(row.values() for row in rows)]
        cells = ("".join(f"<td>{_cell(value)}</td>" for value in line) for line in lines)
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for protocol, report in self.results:
            spread = self.intervals(report)
            for name in ("text_to_image", "image_to_text"):
                figures = getattr(report, name).to_json()
                ranges = getattr(spread, name) if spread else {}
                bounds = {f"{recall} interval": ranges[recall] for recall in ranges}
                rows.append({"protocol": protocol.name, "direction": name} | figures | bounds)
        return rows

    def _figures(self, report: RecallReport) -> dict[str, Json]:
        spread = self.intervals(report)
        return report.to_json() | ({"interval": spread.to_json()} if spread else {})


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "–".join(map(_cell, value))
    return f"{value:.1f}" if isinstance(value, float) else escape(str(value))


def evaluate_store(
    store: Store, settings: RecallSettings | None = None, *, progress: Progress | None = None
) -> Evaluation:
    """Recall@K of a store, its intervals, and what gallery and training share.

    Args:
        store: with `itc` features of images and captions, or seen through a head.
        settings: what and how; everything with ITC alone by default.
        progress: told about re-ranking.

    Raises:
        UsageError: no item has the split.
        EvaluationError: there are no captions, a vector holds NaN, or a record cannot be read.
    """
    settings = settings or RecallSettings()
    gallery, protocol, head = store.gallery(settings.split), ITC, None
    if settings.source:
        own = np.flatnonzero(shared_strings(gallery.sources) == settings.source)
        gallery = gallery.only(own)
    if isinstance(store, ProjectedStore):
        protocol = _head_protocol(store.saved)
        gallery, head = _without_trained(gallery, store.saved, keep=settings.keep_trained)
    with _matcher(
        gallery, settings, progress
    ) as encoder:  # what cannot match says so before any work
        report = gallery_recall(gallery, ks=settings.ks, ties=settings.ties, device=settings.device)
        results = [(protocol, report)]
        if encoder:
            found = rerank_recall(
                gallery, encoder, k=settings.rerank, ks=settings.ks, progress=progress
            )
            results.append((_protocol_of(found), found.recall))
    extended = None
    if settings.positives:
        extended = extended_recall(gallery, read_positives(settings.positives), ks=settings.ks)
    training, unknown = known_training_records(gallery, settings.trained_on)
    if isinstance(store, ProjectedStore):
        record, chosen = of_head(store.saved, gallery)
        training.append(record)
        unknown += chosen
    return Evaluation(
        gallery=gallery,
        results=results,
        leaks=find_leaks(gallery, training, unknown=unknown),
        bootstrap=settings.bootstrap,
        head=head,
        extended=extended,
    )


@contextmanager
def _matcher(
    gallery: Gallery, settings: RecallSettings, progress: Progress | None
) -> Iterator[Encoder | ModelPool[MatcherFacts] | None]:
    """What re-ranks, here or on devices; None where nothing does."""
    spec, model = gallery.store.spec, settings.model
    if not settings.rerank:
        yield None
    elif settings.on or settings.devices:
        opener = opener_of(partial(reopen_encoder, spec, model=model), gallery.caption_texts)
        with (
            placed(settings.devices or "all", opener, on=settings.on) as devices,
            ModelPool[MatcherFacts](devices, progress) as pool,
        ):
            yield pool
    else:
        encoder = reopen_encoder(spec, device=settings.device, model=model)
        encoder.matcher()
        yield encoder


def _protocol_of(found: RerankReport) -> Protocol:
    told = " (text to image: + weight * mean log-likelihood of the text)" * found.by_likelihood
    return Protocol(
        name="itm+itc",
        score=f"itm_logit[1] + itc{told} for the k nearest of each query by ITC; the others behind "
        "them, equal among themselves",
        k=found.k,
        seconds=found.seconds,
    )


def _head_protocol(saved: SavedHead) -> Protocol:
    """How scores come about when a head has made the vectors."""
    config = saved.config
    vectors = f"of what {config.kind} head {saved.weights[:12]} makes of `{config.feature}`"
    score = f"inner product {vectors}, L2-normalised, {ITC.score.partition(', ')[2]}"
    return replace(ITC, name="head", score=score)


def _without_trained(
    gallery: Gallery, saved: SavedHead, *, keep: bool
) -> tuple[Gallery, dict[str, Json]]:
    """A gallery without the images a head was trained on or selected with.

    Where nothing would be left they stay, and are named: figures of images seen in training.

    Args:
        gallery: what is evaluated.
        saved: the head.
        keep: leave them in, and say so.

    Returns:
        The gallery, and for the certificate: which head, and how many images it had seen.
    """
    rest, seen = leak_free(gallery, saved)
    keep = keep or not len(rest)
    fact: dict[str, Json] = {
        "path": str(saved.path),
        "kind": saved.config.kind.value,
        "feature": saved.config.feature,
        "dim": saved.config.dim,
        "weights": saved.weights,
        "n_images_trained_on": seen,
        "left_out": not keep and seen > 0,
    }
    return (gallery if keep else rest), fact
