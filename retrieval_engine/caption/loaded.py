"""What every request for captions says, and the models opened so that stored states fit."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from retrieval_engine.caption.author import Author, AuthorFacts
from retrieval_engine.caption.caption_run import CaptionRun
from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.ranking import Judge
from retrieval_engine.caption.source_images import Asked
from retrieval_engine.encoding.model_pool import ModelPool
from retrieval_engine.encoding.places import placed
from retrieval_engine.errors import CheckpointInvalid, StoreNotFound, UsageError, VlreError
from retrieval_engine.models import decodes_fast, open_encoder
from retrieval_engine.models.captioner import Captioner, open_captioner, writes_captions
from retrieval_engine.progress import Progress
from retrieval_engine.records import DEFAULT_MODEL, Modality
from retrieval_engine.store import Store, open_store


def default_captioner(targets: Sequence[str], store: Path) -> str:
    """The model that captions are written with where nobody names one.

    It is the store's own where the whole store is meant and that model writes captions, so that
    stored `tokens` serve; else the one that ships.
    """
    if not targets:
        with suppress(VlreError):
            model = open_store(store).spec.checkpoint
            if writes_captions(model):
                return model
    return DEFAULT_MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesRequest:
    """Which images, by which models, and where they run; what all requests for captions share.

    Attributes:
        targets: image files, folders and sources; none means the whole store.
        store: directory of the store whose `tokens` are used, and whose images are meant where
            there are no targets; it need not exist where there are.
        model: checkpoint of the captioner.
        ranker: checkpoint of the judge; default the model's own head, or the store's encoder.
        split: only the items of this split.
        limit: only the first images.
        overwrite: begin `out` anew.
        device: `auto`, `cpu`, `cuda`, …
        dtype: arithmetic; `auto` follows the store.
        batch_size: images at once; None lets the device decide.
        workers: decode workers; None means one for each core.
        devices: a process and the models on each of several; see `open_devices`.
        on: a Ray cluster whose devices those are; see `open_devices`.
    """

    targets: tuple[str, ...] = ()
    store: Path = Path("embeddings")
    model: str = DEFAULT_MODEL
    ranker: str | None = None
    split: str | None = None
    limit: int | None = None
    overwrite: bool = False
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    devices: str = ""
    on: str = ""

    def find(self) -> tuple[Store | None, Asked]:
        """The store, None where there is none and none is needed; and the images asked for.

        Raises:
            StoreNotFound: there is neither a target nor a store.
            UsageError: a target is no image, folder or source, or no item has the split.
        """
        store: Store | None = None
        try:
            store = open_store(self.store)
        except StoreNotFound:
            if not self.targets:
                raise
        return store, Asked.of(self.targets, store, split=self.split, limit=self.limit)

    def captioner(self, store: Store | None, *, adapter: str = "") -> Captioner:
        """The captioner, in the arithmetic of the store's vision states where there are some.

        Raises:
            CheckpointNotFound: see `open_captioner`.
            CheckpointInvalid: the checkpoint writes no captions.
        """
        return self._opener(store, adapter)(device=self.device)

    def _opener(self, store: Store | None, adapter: str) -> "partial[Captioner]":
        """Opens the captioner on a device."""
        return partial(
            open_captioner,
            self.model,
            dtype=arithmetic(self.dtype, store),
            adapter=adapter,
            fast_decode=follows_fast(store, self.model),
        )

    @contextmanager
    def opened_run(
        self,
        store: Store | None,
        options: DecodingOptions,
        *,
        adapter: str = "",
        is_judged: bool = False,
        judge_own: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[CaptionRun]:
        """A run with these options, and with the judge where one is wanted; here or on devices.

        `progress` is told when a cluster has no place yet.

        Raises:
            CheckpointNotFound, CheckpointInvalid, UsageError: as `captioner` and `open_judge`.
            ClusterFailure: `on` cannot be reached, or has no room.
        """
        how: dict[str, Any] = {"judge_own": judge_own, "batch_size": self.batch_size or 0}
        how |= {"store": store, "workers": self.workers or 0}
        open_model, open_own = self._opener(store, adapter), None
        if is_judged:
            open_own = partial(
                _judge,
                judges_of(self.ranker, self.model, store),
                dtype=arithmetic(self.dtype, store),
                is_named=self.ranker is not None,
            )
        if self.on or self.devices:
            open_models = partial(_open_author, open_model, open_own, options)
            with (
                placed(self.devices or "all", open_models, on=self.on) as found,
                ModelPool[AuthorFacts](found, progress) as pool,
            ):
                yield CaptionRun(pool, options, **how)
            return
        captioner = open_model(device=self.device)
        judge = open_own(device=self.device) if open_own else None
        yield CaptionRun(captioner, options, judge=judge, **how)


def _open_author(
    open_model: "partial[Captioner]",
    open_own: "partial[Judge] | None",
    options: DecodingOptions,
    *,
    device: str,
) -> Author:
    """In the process of a device: captioner and judge."""
    captioner = open_model(device=device)
    return Author(captioner, options, open_own(device=device) if open_own else None)


def arithmetic(dtype: str, store: Store | None) -> str:
    """The dtype asked for; `auto` follows a store that has vision states, so that they fit."""
    if dtype == "auto" and store and "tokens" in store.features(Modality.IMAGES):
        return store.spec.dtype
    return dtype


def follows_fast(store: Store | None, checkpoint: str) -> bool:
    """Whether a model decodes images as it did for a store with vision states, so that they fit."""
    if store is None or "tokens" not in store.features(Modality.IMAGES):
        return False
    return decodes_fast(store.spec, checkpoint)


def open_judge(
    ranker: str | None,
    model: str,
    store: Store | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> Judge:
    """Load the judge that orders and filters captions.

    Args:
        ranker: a retrieval checkpoint, or None: the captioner's own, else the store's.
        model: the captioner's checkpoint.
        store: whose arithmetic `auto` follows, and whose encoder may judge.
        device: as of `open_encoder`.
        dtype: as of `open_encoder`.

    Raises:
        UsageError: none of them has a matching head.
    """
    judges, dtype = judges_of(ranker, model, store), arithmetic(dtype, store)
    return _judge(judges, device=device, dtype=dtype, is_named=ranker is not None)


def judges_of(ranker: str | None, model: str, store: Store | None) -> dict[str, bool]:
    """Checkpoints of which the first with a matching head judges, and `follows_fast` of each."""
    tried = [model, *([store.spec.checkpoint] if store else [])] if ranker is None else [ranker]
    return {checkpoint: follows_fast(store, checkpoint) for checkpoint in tried}


def _judge(tried: Mapping[str, bool], *, device: str, dtype: str, is_named: bool) -> Judge:
    for checkpoint, fast in tried.items():
        try:
            encoder = open_encoder(checkpoint, device=device, dtype=dtype, fast_decode=fast)
            return Judge(encoder)
        except (CheckpointInvalid, UsageError):
            if is_named:
                raise
    raise UsageError(
        f"nothing can judge captions: {' and '.join(tried)} have no matching head",
        hint="name a retrieval checkpoint as `ranker`, e.g. Salesforce/blip-itm-base-coco",
    )


def states_notes(run: CaptionRun, store: Store | None, model: str) -> list[str]:
    """A line for people where a store's vision states cannot be used."""
    if store is None or run.states.store is not None:
        return []
    has = "tokens" in store.features(Modality.IMAGES)
    why = "are of another vision tower" if has else "are not there"
    return [f"tokens in {store.path} {why}: images are encoded for {model}"]
