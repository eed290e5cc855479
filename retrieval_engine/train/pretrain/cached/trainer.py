"""Pretrains a BLIP on the cached states of a frozen backbone. Read from top to bottom.

1. The backbone's states of every picture are encoded once; a BERT gives the words and the layers.
2. A ridge regression from states to the BERT's captions is the first guess of the image side.
3. Contrastive loss (ITC) with class prototypes beside the photographs; no picture is touched.
4. What was best at retrieval stays as it is. Captions (LM) follow, then matching (ITM) beside
   them: keys and values of an image are formed once for both.
5. The weights that were best on held-out pictures, all three tasks together, are written.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from retrieval_engine.fingerprint import digest
from retrieval_engine.metrics.pair_scores import float32_products
from retrieval_engine.models.device import forbid_tf32, pick_device
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.train.pretrain.cached.cached_objective import CachedObjective, Draw, total
from retrieval_engine.train.pretrain.cached.config import CachedConfig
from retrieval_engine.train.pretrain.cached.data import StateBatcher, load_described, measure
from retrieval_engine.train.pretrain.cached.hybrid_model import CachedModel
from retrieval_engine.train.pretrain.cached.judge import judge
from retrieval_engine.train.pretrain.cached.projections import (
    improve_projections,
    named_pairs,
    pooled_pairs,
    read_captions,
)
from retrieval_engine.train.pretrain.cached.prototypes import Prototypes, read_class_names
from retrieval_engine.train.pretrain.cached.second_opinion import second_opinion
from retrieval_engine.train.pretrain.cached.start import (
    bert_weights,
    blip_config,
    check_text_init,
    first_guess,
    open_backbone,
    pruned_tokenizer,
)
from retrieval_engine.train.pretrain.cached.write_model import export
from retrieval_engine.train.pretrain.config import PRESETS
from retrieval_engine.train.pretrain.report import PretrainReport, record
from retrieval_engine.train.pretrain.run import PretrainRun, RunState, Stateful
from retrieval_engine.train.pretrain.texts import Texts
from retrieval_engine.train.runlog import OnValidation
from retrieval_engine.train.schedule import step_factor
from retrieval_engine.train.trackers import check_tracker

_TEXT_LENGTH = PRESETS["tiny"].text_length


@dataclass(slots=True, kw_only=True)
class CachedRunState(RunState):
    """Where a run stands; `kept` is the mean figure of the three tasks.

    Attributes:
        fused_from: part of the run that was over when captions began; 1 before.
        recall: mean recall of the weights that would be written.
        matched: whether matching has begun.
    """

    fused_from: float = 1.0
    matched: bool = False
    recall: float = 0.0


def pretrain_cached(
    config: CachedConfig,
    out: Path,
    *,
    resume: bool = False,
    cache: Path | None = None,
    tracker: str = "",
    progress: Progress | None = None,
    on_validation: OnValidation | None = None,
) -> PretrainReport:
    """Train a BLIP on a backbone's states and write it as one directory.

    Args:
        config: source, what it starts from, and recipe.
        out: directory of the model; made where missing. `out/run` holds what a resumed run needs
            and goes when the run is complete.
        resume: go on where an interrupted run of the same config stopped.
        cache: where the states are kept for other runs; `out/run/cache` by default.
        tracker: where the log goes as well, see `trackers.TRACKERS`; empty for nowhere.
        progress: told about the run.
        on_validation: see `OnValidation`; the first guess is step 0.

    Raises:
        MissingExtra: the tracker is not installed.
        TrainingError: no captions, too few items, a run that cannot be resumed, a loss that is
            not finite, or `out` already holds a model.
        UsageError: an option that cannot be, or files that are not what they should be.
        SourceError: the source cannot be read.
    """
    check_tracker(tracker)
    cache, progress = cache or out / "run" / "cache", progress or Silent()
    run = CachedRun(config, out, cache, progress, resume, tracker)
    run.on_validation = on_validation
    return run.run()


class CachedRun(PretrainRun):
    """One pretraining on a backbone's states."""

    config: CachedConfig
    model: CachedModel
    state: CachedRunState

    def __init__(
        self,
        config: CachedConfig,
        out: Path,
        cache: Path,
        progress: Progress,
        resume: bool,
        tracker: str = "",
    ) -> None:
        super().__init__(out, progress, resume=resume, tracker=tracker)
        self.config = config
        self.device = pick_device(config.device)
        forbid_tf32(self.device, torch.float32)  # the states are those that a CPU would see
        self.backbone, rows = open_backbone(config)
        self.backbone.to(self.device)
        names = read_class_names(Path(config.class_names), len(rows)) if config.class_names else []
        check_text_init(config)
        self.train_set, self.val_set = load_described(config, self.backbone, cache, progress)
        called = [word for name in names for word in (*name.names, *name.kinds)]
        self.tokenizer, kept = pruned_tokenizer(config, [*self.train_set.captions, *called])
        self.texts = Texts(self.train_set.captions, self.tokenizer, _TEXT_LENGTH)
        self.val_texts = Texts(self.val_set.captions, self.tokenizer, _TEXT_LENGTH)
        self.scale, means = measure(self.train_set.views[0])
        said = self._said()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = CachedModel(
                blip_config(config, self.tokenizer),
                bert_weights(config, kept),
                said,
                drop=config.dropout,
                frozen_layers=config.frozen_layers,
                cls=int(self.tokenizer.convert_tokens_to_ids("[CLS]")),
            ).to(self.device)
        self.prototypes = None
        if config.prototypes and names:
            self.prototypes = Prototypes(rows, names, self.scale.scale)
        self.objective = CachedObjective(
            self.model, self.train_set, self.texts, config, self.prototypes, said.to(self.device)
        )
        self.batcher = StateBatcher(self.train_set, self.scale, config, self.device)
        lrs = (config.text_lr, config.image_lr, config.fusion_lr, config.decoder_lr)
        groups = self.model.groups(lrs, config.weight_decay)
        on_cuda = self.device.type == "cuda"
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=on_cuda or None)
        vocabulary = self.tokenizer.get_vocab()
        self.identity = digest([config.identity, self.train_set.key, self.val_set.key, vocabulary])
        decay: Any = get_ema_multi_avg_fn(config.average)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.model, multi_avg_fn=decay)
        self.state = CachedRunState()
        if not resume:
            self._guess(means)
            self.averaged.update_parameters(self.model)
        self._begin(resume=resume)
        if self.state.fused_from < 1:
            self.model.freeze_retrieval()

    def _said(self) -> torch.Tensor:
        """Ids of the pieces that the training captions use, [SEP] among them."""
        rows = np.arange(len(self.train_set.captions))
        both = [self.texts.of(rows, mirrored=side).ids.numpy() for side in (False, True)]
        used = np.unique(np.concatenate([np.unique(ids) for ids in both]))
        return torch.from_numpy(used[used != 0])

    @torch.no_grad()
    def _guess(self, means: NDArray[np.float32]) -> None:
        """Begin the image side and both projections with a closed solution."""
        data, model = self.train_set, self.model.eval()
        states = read_captions(model, self.texts, len(data.captions), self.progress).cpu()
        self.objective.learn_likeness(states)
        sums = np.add.reduceat(states.numpy(), data.starts[:-1])
        own = (sums / np.diff(data.starts)[:, None]).astype(np.float32)
        guess = first_guess(means, own, self.config.embed_dim)
        model.begin_with(*(torch.from_numpy(part).to(self.device) for part in guess))

    def train(self) -> None:
        """Run the steps that are left; the first guess is judged too.

        Products are of TF32 on CUDA, those of the validations between the steps too.
        """
        if not self.state.step:
            self._validate()
        with float32_products("high") if self.device.type == "cuda" else nullcontext():
            super().train()

    def _step(self) -> dict[str, torch.Tensor]:
        config, state, done = self.config, self.state, self._done()
        fused = done >= config.contrast_share
        if fused and state.fused_from == 1:
            self._settle()
            state.fused_from = done
        if fused:
            along = (done - state.fused_from) / (1 - state.fused_from)
            size, places = config.fused_size, config.places_told
        else:
            along = done / config.contrast_share
            size, places = config.batch_size, config.places_kept
        torch.manual_seed(config.seed * 1_000_003 + state.step)  # of the dropout
        seen = self.batcher.batch(state.step, size, places)
        drawn = Draw.at(state.step, along if fused else None, config.matching_share)
        if drawn.matched and not state.matched:
            state.matched, state.kept = True, -1.0  # a head that learned nothing is not written
        with self._autocast(on_cuda=False):  # TF32 there
            parts = self.objective.losses(seen, drawn)
        self._backward(total(parts), "lower `text_lr`, `image_lr`, `fusion_lr` and `decoder_lr`")
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * step_factor(along, config.warmup)
        self.optimiser.step()
        self.averaged.update_parameters(self.model)
        self.optimiser.zero_grad(set_to_none=True)
        return parts

    def _settle(self) -> None:
        """Go on from the weights that were best at retrieval, which stay from here."""
        self._validate()
        best = torch.load(self._best, map_location=self.device, weights_only=True)
        self.model.load_state_dict(best)
        self._improve()
        self.averaged.module.load_state_dict(self.model.state_dict())
        self.model.freeze_retrieval()
        if self.config.matching_share:
            self.objective.learn_bank()
        self.model.train()
        self.state.kept = -1.0

    def _improve(self) -> None:
        """Train a head beside the projections of towers that stay as they are from here."""
        self.progress.say("the towers stay from here: a head is trained beside their projections")
        model = self.model.eval()
        train = pooled_pairs(model, self.train_set, self.texts, self.scale)
        val = pooled_pairs(model, self.val_set, self.val_texts, self.scale)
        if self.prototypes:
            train = train.joined(named_pairs(model, self.prototypes, self.texts), first_only=False)
        log = self.out / "run" / "head.jsonl"
        self.state.recall = improve_projections(model, train, val, log, self.progress)

    def _validate(self) -> None:
        state = self.state
        mean = cast("CachedModel", self.averaged.module)
        found = judge(mean, self.val_set, self.val_texts, self.scale, fused=state.fused_from < 1)
        self.log.write({"step": state.step, **found.to_json()})
        self.progress.say(f"step {state.step:,}: {found}; {self._done():.0%} done")
        if found.mean > state.kept:
            state.recall = found.recall.mean_recall
            self._keep(found.mean, mean)
        self._told(found.to_json())

    def _parts(self) -> Mapping[str, Stateful]:
        return {
            "model": self.model,
            "averaged": self.averaged,
            "optimiser": self.optimiser,
            "objective": self.objective,
        }

    def finish(self) -> PretrainReport:
        """Write the best weights as a model directory and take the run's own files away."""
        decoder = self.model.text_decoder.parameters()
        weights = {*self.model.retrieval.parameters(), *decoder, *self.backbone.parameters()}
        report = self._report(self.state.recall, weights)
        if self.state.fused_from == 1:
            self._improve()
            report = replace(report, mean_recall=round(self.state.recall, 2))
        model, config, settings = self.model.eval(), self.config, self.config.to_json()
        held_out = self.val_set, self.val_texts, self.scale
        model.likelihood, model.usual = second_opinion(model, *held_out, self.progress)
        plain: dict[str, Any] = CachedConfig(
            source=config.source, backbone=config.backbone, backbone_weights="-", text_init="-"
        ).to_json()
        changed = {k: v for k, v in settings.items() if v != plain[k] or k == "backbone"}
        facts = record(report, settings, changed, self.train_set, model.temperature)
        seen = self.train_set.listed(self.config.source)
        self._count_words(self.tokenizer, self.train_set.captions)
        export(
            model,
            self.backbone,
            self.tokenizer,
            self.scale,
            self.out,
            dtype=getattr(torch, self.config.save_dtype),
            facts={**facts, "frozen": ["vision_model.backbone"], **seen},
        )
        self._close()
        return report
