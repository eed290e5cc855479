"""The epochs of a training: start, contrast, validate, keep the best; and the losses."""

import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from retrieval_engine.durable import writing
from retrieval_engine.errors import TrainingError
from retrieval_engine.heads import Head
from retrieval_engine.metrics.pair_scores import block_scores
from retrieval_engine.progress import Progress
from retrieval_engine.records import Json
from retrieval_engine.train.head import closed_form, sampler
from retrieval_engine.train.head.adamw import AdamW
from retrieval_engine.train.head.closed_form import LinearMaps, TruePairs, half_precision
from retrieval_engine.train.head.pairs import FeaturePairs, TrainingData
from retrieval_engine.train.head.recipe import CaptionChoice, HeadRecipe, Loss, Start
from retrieval_engine.train.head.val_recall import ValRecall
from retrieval_engine.train.runlog import OnValidation
from retrieval_engine.train.trackers import RunTracker

_WARM_UP = 0.1
_SCALE_BATCH = 256
_EXCLUDED = -1e4  # finite: a row without negatives must not give NaN gradients
_SCALES = (5.0, 10.0, 14.0, 20.0, 30.0, 45.0, 70.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """Who is told about the epochs of a training.

    Attributes:
        log: file that gets a line an epoch added.
        began: `time.perf_counter()` from which the log counts seconds.
        progress: told about every epoch.
        tracker: gets the lines too, an epoch a step.
        on_validation: see `OnValidation`; an epoch is a step.
    """

    log: Path
    began: float
    progress: Progress
    tracker: RunTracker | None = None
    on_validation: OnValidation | None = None

    def tell(self, epoch: int, line: dict[str, Json], found: ValRecall) -> None:
        """One validation: its line, and its figures."""
        line["seconds"] = round(time.perf_counter() - self.began, 3)
        with writing(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.tracker:
            self.tracker.log(line, epoch)
        if self.on_validation:
            self.on_validation(epoch, found.figures())


class HeadRun:
    """One training of a head, from the start to the weights that are kept.

    Args:
        recipe: every choice.
        data: what is read.
        head: with random weights, on the device; `head` is the trained one in the end.
        told: hears about every epoch.

    Attributes:
        first: validation recall before the first step.
        best: that of the weights that are kept.
        best_epoch: where they are from; 0 is the start.
        epochs: epochs run.
    """

    def __init__(self, recipe: HeadRecipe, data: TrainingData, head: Head, told: Listeners) -> None:
        self.recipe, self.train, self.val, self.head = recipe, data.train, data.val, head
        self.told, self.progress = told, told.progress
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.epochs = self.best_epoch = 0
        self._start(self.val)
        self.first = self.best = self._validate(None)

    @torch.no_grad()
    def _start(self, held_out: FeaturePairs | None) -> None:
        """Give the head its first weights and temperature; `held_out` helps to choose them."""
        if self.recipe.start is Start.CLOSED_FORM:
            may = not self.recipe.beside  # what lies beside them anyway is no start
            maps = start_closed_form(self.head, self.train, held_out, self.recipe.seed, as_is=may)
            form = f"closed form, ridge {maps.ridge:g}, power {maps.power:g}"
            self.progress.say(f"start: {form if maps.ridge else 'the features as they are'}")
        else:
            self.progress.say("start: random weights")
        if self.recipe.start is Start.RANDOM and self.recipe.loss is not Loss.DIAGONAL:
            standardise(self.head, self.train, self.recipe.seed)
        if self.recipe.loss is Loss.SIGMOID:
            self.head.log_scale.fill_(math.log(10))
            self.head.offset.fill_(-10)
        elif self.recipe.start is Start.CLOSED_FORM:
            self._fit_scale()

    def fit(self) -> None:
        """Run the epochs; the head ends with the weights that are kept."""
        recipe = self.recipe
        optimiser = self._optimiser()
        kept = deepcopy(self.head.state_dict())
        self.progress.start("epochs", recipe.epochs)
        for number in range(1, recipe.epochs + 1):
            loss = self._epoch(optimiser)
            self.epochs = number
            now = self._validate(loss)
            if not recipe.select_best or now.rank > self.best.rank:
                self.best, self.best_epoch = now, number
                kept = deepcopy(self.head.state_dict())
            self.progress.advance()
            if recipe.patience and number - self.best_epoch >= recipe.patience:
                break
        self.progress.stop()
        self.head.load_state_dict(kept)

    def refit(self) -> None:
        """Train a new head on both sets for as many epochs as were best."""
        head = Head(self.head.config).to(self.train.images.device)
        first_only = self.recipe.captions is CaptionChoice.FIRST
        self.head, self.train = head, self.train.joined(self.val, first_only=first_only)
        self._start(None)
        optimiser = self._optimiser()
        for _ in range(self.best_epoch):
            self._epoch(optimiser)

    def _optimiser(self) -> AdamW:
        recipe = self.recipe
        size = sampler.batch_size(recipe, len(self.train))
        pace = self._pace(-(-len(self.train) // size) * recipe.epochs)
        return AdamW(
            self.head.parameters(),
            rate=lambda step: recipe.lr * pace(step),
            weight_decay=recipe.weight_decay,
        )

    def _epoch(self, optimiser: AdamW) -> float:
        recipe, train = self.recipe, self.train
        mined = None
        if recipe.hard_negatives:
            self.head.eval()
            mined = sampler.mine(self.head, train, recipe.hard_negatives)
        self.head.train()
        total, steps = 0.0, 0
        for batch in sampler.epoch(train, recipe, self.generator, mined):
            loss = self._loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total, steps = total + float(loss.detach()), steps + 1
        if not math.isfinite(total):
            raise TrainingError(
                f"the loss became {total} in epoch {self.epochs + 1}",
                hint=f"use a smaller `lr` than {recipe.lr:g}",
            )
        return total / steps

    def _loss(self, batch: sampler.HeadBatch) -> Tensor:
        return self._loss_of(self._cosines(batch) * self.head.scale, batch)

    def _cosines(self, batch: sampler.HeadBatch) -> Tensor:
        """(b, u) scores of a batch's images and texts."""
        head, train = self.head, self.train
        with half_precision(train.images):
            images = head.images(train.images[batch.images])
            texts = head.texts(train.texts[batch.texts])
        return block_scores(images, texts[:, None])

    def _loss_of(self, logits: Tensor, batch: sampler.HeadBatch) -> Tensor:
        if self.recipe.loss is Loss.SIGMOID:
            return sigmoid_loss(logits + self.head.offset, batch.positive)
        if self.recipe.loss is Loss.DIAGONAL:
            return diagonal_loss(logits)
        return info_nce_loss(logits, batch.positive)

    @torch.no_grad()
    def _fit_scale(self) -> None:
        """Begin with the temperature that suits the start; learning it would take many steps."""
        self.head.eval()
        generator = torch.Generator().manual_seed(self.recipe.seed)
        few = replace(self.recipe, batch_size=min(_SCALE_BATCH, len(self.train)))
        batch = next(sampler.epoch(self.train, few, generator, None))
        cosines = self._cosines(batch)
        tried = {scale: float(self._loss_of(cosines * scale, batch)) for scale in _SCALES}
        self.head.log_scale.fill_(math.log(min(tried, key=lambda scale: tried[scale])))

    @torch.no_grad()
    def judged(self) -> ValRecall:
        """Validation recall of the head as it is."""
        head, val = self.head.eval(), self.val
        return val.recall(head.images(val.images), head.texts(val.texts))

    def _validate(self, loss: float | None) -> ValRecall:
        found = self.judged()
        line: dict[str, Json] = {"epoch": self.epochs}
        line |= {} if loss is None else {"loss": round(loss, 5)}
        scale = round(float(self.head.scale.detach()), 3)
        self.told.tell(self.epochs, line | {"scale": scale, **found.to_json()}, found)
        return found

    def _pace(self, steps: int) -> Callable[[int], float]:
        """Factor of the learning rate at each step: warm-up, then a cosine down to nothing."""
        warm_up = max(1, round(_WARM_UP * steps))

        def factor(step: int) -> float:
            if self.recipe.constant_lr:
                return 1.0
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))

        return factor


def start_closed_form(
    head: Head, pairs: FeaturePairs, held_out: FeaturePairs | None, seed: int, *, as_is: bool = True
) -> LinearMaps:
    """Make a head compute the closed-form maps of some pairs, or none `as_is`, and say which."""
    rows = standardise(head, pairs, seed)
    others = None
    if held_out is not None:
        others = _standardised(
            head, closed_form.one_to_one(held_out, _generator(seed), most=closed_form.MOST_JUDGED)
        )
    dim = head.config.dim
    aligned = rows.images.shape[1] == rows.texts.shape[1] == dim
    forms = (head.image.mean, head.image.scale), (head.text.mean, head.text.scale)
    plain = closed_form.identity(*forms) if as_is and aligned else None
    maps = closed_form.choose_maps(rows, dim, plain, others)
    head.image.start_from(*maps.image)
    head.text.start_from(*maps.text)
    return maps


def standardise(head: Head, pairs: FeaturePairs, seed: int) -> TruePairs:
    """Make a head bring features to mean 0 and mean square 1 first; the true pairs, so brought."""
    rows = closed_form.one_to_one(pairs, _generator(seed))
    head.image.standardise(*closed_form.standardisation(rows.images))
    head.text.standardise(*closed_form.standardisation(rows.texts))
    return _standardised(head, rows)


def _standardised(head: Head, rows: TruePairs) -> TruePairs:
    return TruePairs(
        images=(rows.images - head.image.mean) * head.image.scale,
        texts=(rows.texts - head.text.mean) * head.text.scale,
        image=rows.image,
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def info_nce_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Symmetric InfoNCE in which a positive competes with negatives only.

    Each true pair has its own softmax against all that is no positive: -log(e^s / (e^s + sum over
    negatives)). The usual sum would hold the image's other captions too, and push them away.
    Averaged over an image's captions, then over images; and likewise from the captions' side.

    Args:
        logits: (b, u) scaled scores.
        positive: (b, u) bool, at least one in each row and column.
    """
    negatives = logits.masked_fill(positive, _EXCLUDED)
    image, text = positive.nonzero(as_tuple=True)
    true = logits[image, text]
    per_image = positive.sum(1)[image] * len(logits)
    per_text = positive.sum(0)[text] * logits.shape[1]
    to_text = functional.softplus(negatives.logsumexp(1)[image] - true) / per_image
    to_image = functional.softplus(negatives.logsumexp(0)[text] - true) / per_text
    return (to_text.sum() + to_image.sum()) / 2


def sigmoid_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, Zhai et al., ICCV 2023), summed over an image's pairs.

    Args:
        logits: (b, u) scaled scores, offset added.
        positive: (b, u) bool.
    """
    signs = positive.to(logits.dtype) * 2 - 1
    return -functional.logsigmoid(signs * logits).sum() / len(logits)


def diagonal_loss(logits: Tensor) -> Tensor:
    """Plain symmetric cross-entropy of (b, b) logits: the k-th caption belongs to image k."""
    target = torch.arange(len(logits), device=logits.device)
    return (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2
