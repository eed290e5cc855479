"""Trains a head on cached features. No image is touched: an epoch is a few matrix products.

read (once, to the device) -> start (closed form) -> epochs (contrast, validate) -> save best
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from retrieval_engine.errors import FeatureMissing, TrainingError, UsageError
from retrieval_engine.heads import Head, HeadConfig, HeadKind, SavedHead, TrainedOn, save_head
from retrieval_engine.models.device import pick_device
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Json, Modality
from retrieval_engine.store import Store
from retrieval_engine.train.head.beside import lay_beside
from retrieval_engine.train.head.fitting import HeadRun, Listeners
from retrieval_engine.train.head.pairs import FeaturePairs, TrainingData, read_training_data
from retrieval_engine.train.head.recipe import HeadRecipe
from retrieval_engine.train.head.val_recall import ValRecall
from retrieval_engine.train.runlog import OnValidation, Panel, draw_curves
from retrieval_engine.train.trackers import RunTracker, check_tracker

LOG = "log.jsonl"
CURVES = "curves.png"
_PANELS = (
    Panel(names=("loss",), label="training loss"),
    Panel(
        names=(
            "mean_recall",
            *(f"{side} R@{k}" for side in ("text_to_image", "image_to_text") for k in (1, 10)),
        ),
        label="validation recall, percent; epoch 0 is the start",
        top=101,
    ),
)
_USUAL_DIM = 512
_USUAL_HIDDEN = 2048
_WIDEST_DIM = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadReport:
    """What the training of a head came to.

    Attributes:
        saved: the head.
        recipe: how it was trained.
        train: images and captions learned from.
        val: images and captions selected on.
        start: validation recall before the first step.
        best: that of the weights that were kept.
        best_epoch: where they are from; 0 is the start.
        refitted: whether it was then trained as long again on both sets, and `best` is that of
            the head before.
        epochs: epochs run.
        seconds: wall time, reading included.
        without: validation recall of search without a head; None where the store lacks `itc`.
    """

    saved: SavedHead
    recipe: HeadRecipe
    train: FeaturePairs
    val: FeaturePairs
    start: ValRecall
    best: ValRecall
    best_epoch: int
    epochs: int
    refitted: bool
    seconds: float
    without: ValRecall | None = None

    def to_json(self) -> dict[str, Json]:
        """The report as one JSON object."""
        return {
            "head": str(self.saved.path),
            "kind": self.saved.config.kind.value,
            "feature": self.saved.config.feature,
            "dim": self.saved.config.dim,
            "parameters": sum(p.numel() for p in self.saved.head.parameters()),
            **_facts(self),
        }


def _facts(report: HeadReport) -> dict[str, Json]:
    def size(pairs: FeaturePairs) -> dict[str, Json]:
        return {"images": len(pairs), "captions": int((pairs.captions >= 0).sum())}

    return {
        "train": size(report.train),
        "val": size(report.val),
        "start": report.start.to_json(),
        "metrics": report.best.to_json(),
        "without_head": report.without.to_json() if report.without else None,
        "best_epoch": report.best_epoch,
        "epochs": report.epochs,
        "refitted": report.refitted,
        "seconds": round(report.seconds, 3),
        "fingerprint": report.saved.encoder,
    }


def train_head(
    store: Store,
    out: str | Path,
    recipe: HeadRecipe | None = None,
    *,
    device: str = "auto",
    tracker: str = "",
    progress: Progress | None = None,
    on_validation: OnValidation | None = None,
) -> HeadReport:
    """Train a head on the features of a store and save it.

    Args:
        store: where the features are.
        out: directory of the head, made when absent.
        recipe: every choice.
        device: see `pick_device`.
        tracker: where the log goes as well, see `trackers.TRACKERS`; empty for nowhere.
        progress: told about every epoch.
        on_validation: see `OnValidation`; an epoch is a step, and the start is step 0.

    Raises:
        MissingExtra: the tracker is not installed.
        FeatureMissing: the store lacks the feature.
        TrainingError: too few images, no validation, or the loss is no number.
        UsageError: a split or a choice makes no sense here.
    """
    began = time.perf_counter()
    check_tracker(tracker)
    recipe, progress, out = recipe or HeadRecipe(), progress or Silent(), Path(out)
    where = pick_device(device)
    data = _sound(read_training_data(store, recipe, where))
    with _seeded(recipe.seed):
        out.mkdir(parents=True, exist_ok=True)
        (out / LOG).unlink(missing_ok=True)
        head = Head(_config(recipe, data.train)).to(where)
        told = Listeners(log=out / LOG, began=began, progress=progress, on_validation=on_validation)
        with _followed(told, tracker, recipe) as told:
            run = HeadRun(recipe, data, head, told)
            run.fit()
        best, refitted = _settled(run)
    draw_curves(out / LOG, out / CURVES, _PANELS, along="epoch")
    report = HeadReport(
        saved=_saved(store, run.head, out, {}),
        recipe=recipe,
        refitted=refitted,
        train=data.train,
        val=data.val,
        start=run.first,
        best=best,
        best_epoch=run.best_epoch,
        epochs=run.epochs,
        seconds=time.perf_counter() - began,
        without=data.val_itc.recall() if data.val_itc else None,
    )
    record = {"store": str(store.path), "recipe": recipe.to_json(), **_facts(report)}
    trained_on = _all_trained(data.trained_on) if refitted else data.trained_on
    return replace(report, saved=save_head(_saved(store, run.head, out, record), trained_on))


def _settled(run: HeadRun) -> tuple[ValRecall, bool]:
    """Lay the head beside the features, and train on both sets, where the recipe asks for it.

    Returns:
        Validation recall before the second training, and whether there was one.
    """
    recipe, best = run.recipe, run.best
    if recipe.beside:
        lay_beside(run.head, run.train, recipe.beside)
        best = run.judged()
    refits = recipe.select_best and len(run.train) + len(run.val) < recipe.refit_below
    if refits:
        torch.manual_seed(recipe.seed)
        run.refit()
        if recipe.beside:
            lay_beside(run.head, run.train, recipe.beside)
    return best, refits


def _all_trained(records: TrainedOn) -> TrainedOn:
    return replace(records, roles=["train"] * len(records))


@contextmanager
def _followed(told: Listeners, name: str, recipe: HeadRecipe) -> Iterator[Listeners]:
    """With the tracker of this name for as long as the block runs; without for an empty name."""
    tracker = RunTracker(name, told.log.parent, recipe.to_json()) if name else None
    try:
        yield replace(told, tracker=tracker)
    finally:
        if tracker:
            tracker.close()


def untrained_head(store: Store, out: str | Path, recipe: HeadRecipe) -> SavedHead:
    """Random linear maps, saved as a head that has seen no image: the floor to compare with.

    Args:
        store: where the features are.
        out: directory of the head.
        recipe: its `feature`, `dim` and `seed` count.

    Raises:
        FeatureMissing: the store lacks the feature.
    """
    widths = {}
    for modality in Modality:
        forms = store.features(modality)
        if recipe.feature not in forms:
            raise FeatureMissing(f"{store.path} has no {recipe.feature} of {modality}")
        widths[modality] = forms[recipe.feature].shape[-1]
    config = HeadConfig(
        kind=HeadKind.LINEAR,
        feature=recipe.feature,
        image_width=widths[Modality.IMAGES],
        text_width=widths[Modality.CAPTIONS],
        dim=recipe.dim or 768,
        bias=False,
    )
    with _seeded(recipe.seed):
        head = Head(config)
    record: dict[str, Json] = {"store": str(store.path), "untrained": True}
    return save_head(_saved(store, head, Path(out), record), TrainedOn())


def _config(recipe: HeadRecipe, pairs: FeaturePairs) -> HeadConfig:
    widths = pairs.images.shape[2], pairs.texts.shape[1]
    usual = _USUAL_DIM if widths[0] != widths[1] else _WIDEST_DIM
    dim = recipe.dim or min(usual, *widths)
    if recipe.beside and not widths[0] == widths[1] == dim:
        raise UsageError(
            f"`beside` compares {recipe.feature} as it is, but that of images is {widths[0]} wide, "
            f"of captions {widths[1]}, and the head's output {dim}",
            hint="use `feature='itc'`, and no `dim`",
        )
    is_mlp = recipe.kind is HeadKind.MLP
    return HeadConfig(
        kind=recipe.kind,
        feature=recipe.feature,
        image_width=widths[0],
        text_width=widths[1],
        dim=dim,
        hidden=(recipe.hidden or min(8 * dim, max(_USUAL_HIDDEN, 2 * dim))) if is_mlp else 0,
        dropout=recipe.dropout if is_mlp else 0.0,
        residual=recipe.residual and is_mlp,
        bias=recipe.bias,
    )


def _saved(store: Store, head: Head, path: Path, record: dict[str, Json]) -> SavedHead:
    name = head.config.feature
    return SavedHead(
        path=path,
        head=head.cpu().eval(),
        encoder=store.fingerprint,
        checkpoint=store.spec.checkpoint,
        inputs={m: store.features(m)[name].fingerprint for m in Modality},
        record=record,
    )


def _sound(data: TrainingData) -> TrainingData:
    """The data, with numbers that can be learned from."""
    _refuse_nan(data)
    _refuse_constant(data.train)
    return data


def _refuse_nan(data: TrainingData) -> None:
    for name, part in (("train", data.train), ("validation", data.val)):
        for side, x in (("images", part.images), ("texts", part.texts)):
            if not x.sum(dtype=torch.float32).isfinite():  # one pass; rows only when they matter
                bad = int((~x.isfinite()).flatten(1).any(1).sum())
                raise TrainingError(
                    f"{bad} of {len(x)} {side} of the {name} set hold NaN or infinity",
                    hint="the store refuses such vectors: check it with `store.verify()`",
                )


def _refuse_constant(train: FeaturePairs) -> None:
    for side, x in (("images", train.images), ("texts", train.texts)):
        if bool((x == x[:1]).all()):
            raise TrainingError(
                f"all {len(x)} {side} to train on have the same features: nothing tells them apart",
                hint="look at what was encoded, and at the encoder: it has collapsed",
            )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers that depend on the seed alone, and leave the process's own as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
